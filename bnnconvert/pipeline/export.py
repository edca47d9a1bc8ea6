"""Write a student in one of the export formats."""

from pathlib import Path

from bnnconvert import __version__
from bnnconvert.artifact.schema import Metadata, Normalisation
from bnnconvert.exporters.table import TARGETS
from bnnconvert.pipeline.student import Student, probe_input
from bnnconvert.values.report import ExportReport
from bnnconvert.values.tables import look_up


def export(student: Student, path: str | Path | None = None, *, format: str = "packed") -> ExportReport:
    """Write the student as a packed artifact, verified against it; by default NAME.packed.safetensors.

    Raises: UsageError, RefusalError, VerificationError; no file is left then.
    """
    write = look_up(TARGETS, format, where="export", what="format")
    name = student.run.name if student.run is not None else "model"
    target = Path(path) if path is not None else Path.cwd() / f"{name}.packed.safetensors"
    return write(
        student.model.cpu().eval(),
        target,
        golden_input=probe_input(student.input_shape, None)[0][:1],
        metadata=_metadata(student),
        teacher=student.teacher,
    )


def _metadata(student: Student) -> Metadata:
    record = None if student.run is None else student.run.read()
    data = student.data
    return Metadata(
        producer=f"bnnconvert {__version__}",
        recipe=student.recipe.name,
        recipe_text="" if student.run is None else student.run.file("recipe.toml").read_text("utf-8"),
        source="" if record is None else record.source,
        source_sha256="" if record is None else record.source_sha256,
        normalisation=None
        if data is None
        else Normalisation(scale="uint8" if data.scale == "uint8" else "as-is", mean=data.mean, std=data.std),
        classes=None if data is None else data.classes,
        metrics={} if record is None else record.metrics,
    )
