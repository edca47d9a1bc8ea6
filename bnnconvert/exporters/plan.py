"""Target `plan`: the program compiled for the native engine, for hosts in C and C++ without Python or torch."""

from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from bnnconvert.artifact.schema import Metadata
from bnnconvert.errors import RefusalError, UsageError, VerificationError
from bnnconvert.exporters.draft import deployed_form, draft_of, module_bytes
from bnnconvert.exporters.verify import verify
from bnnconvert.lower.deploy import tensor_bytes
from bnnconvert.runtime import native
from bnnconvert.runtime.session import Session
from bnnconvert.values.files import write_bytes
from bnnconvert.values.inputs import Example
from bnnconvert.values.report import ExportReport


def export_plan(
    student: GraphModule,
    path: str | Path,
    *,
    golden_input: Example,
    metadata: Metadata | None = None,
    teacher: nn.Module | None = None,
) -> ExportReport:
    """Write the plan that `bnn_open` of the C interface takes. It holds no metadata.

    Raises: UsageError where the engine is not installed to prove it, RefusalError for a model of which it would run
    only parts, VerificationError where it computes something else than the student; no file is left then.
    """
    if native.library() is None:
        raise UsageError("export: a plan is proved on the native engine, which this installation lacks; give --packed.")
    deployed, golden = deployed_form(student, golden_input)
    draft = draft_of(deployed, golden)
    session = Session(draft, engine="native")
    content = _plan_of(session)
    report = verify(student, session, [golden])
    if not report.passed:
        raise VerificationError(f"{path}: {report.failure}; nothing was written")
    write_bytes(path, content)
    tensors = sum(array.nbytes for array in draft.tensors.values())
    return ExportReport(
        path=str(path),
        predicted_bytes=tensor_bytes(deployed),
        tensor_bytes=tensors,
        golden_bytes=0,
        header_bytes=len(content) - tensors,
        file_bytes=len(content),
        float_bytes=0 if teacher is None else module_bytes(teacher),
        golden_difference=report.largest_difference,
        layers=(),
    )


def _plan_of(session: Session) -> bytes:
    """The plan of a program of which the engine runs everything."""
    executor = session.executor
    if len(executor.parts) > 1 or executor.parts[0].plan is None:
        number, reason = next(iter(executor.reasons.items()), (0, "it has several parts"))
        node = session.program.nodes[number]
        raise RefusalError(
            f"export: {node.layer or node.op} would run outside the engine ({reason}), and a plan has no outside; "
            "give --packed, or keep the layer out of the model."
        )
    return executor.parts[0].plan
