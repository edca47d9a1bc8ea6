"""Prove an artifact: by its golden input, or against the student that it came from."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch

from bnnconvert.errors import UsageError
from bnnconvert.exporters.verify import verify as compare_with_student
from bnnconvert.load.task import load_task
from bnnconvert.lower.edges import edges_of, with_edges
from bnnconvert.lower.predictors import predictors_of, with_predictors
from bnnconvert.pipeline.convert import open_run
from bnnconvert.pipeline.student import Student, evaluation_data
from bnnconvert.runtime import Session
from bnnconvert.tasks import Task
from bnnconvert.values.data import Data
from bnnconvert.values.inputs import Example, samples_in
from bnnconvert.values.program import Program
from bnnconvert.values.report import GoldenReport, VerifyReport

LARGEST_BATCH = 250
KEPT = 2**30
"""Bytes of values."""


def verify(
    artifact: str | Path,
    *,
    against: str | Path | Student | None = None,
    data: str | Data | None = None,
    split: Literal["test", "train"] = "test",
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GoldenReport | VerifyReport:
    """Run the artifact's golden input; with a run, compare it with that run's student, layer by layer.

    The comparison runs on the data's split if there is data, else on random input.

    Raises: ArtifactError, VerificationError for a golden output that is off.
    """
    session = Session(artifact)
    difference = session.golden_difference()
    if against is None:
        return GoldenReport(difference, len(session.artifact.golden_inputs[0]))
    student = against if isinstance(against, Student) else open_run(against)
    taken, wanted = ([i.shape[1:] for i in specs] for specs in (session.program.inputs, student.inputs))
    if taken != wanted:
        ours, theirs = (", ".join(map(str, shapes)) for shapes in (taken, wanted))
        raise UsageError(
            f"{artifact}: takes inputs of shape {ours}, but the run's student takes {theirs}; give the run that it was "
            "exported from."
        )
    kind = load_task(student.task)
    batches, total = _comparison_inputs(student, data, split, samples, _batch_size(session.program), kind)
    model = student.model
    edges = edges_of(session.program, session.artifact.tensors)
    if edges:
        model = with_edges(model.cpu(), edges)
    predictors = predictors_of(session.program, session.artifact.tensors)
    if predictors:
        model = with_predictors(model.cpu(), predictors)
    return compare_with_student(model, session, _watched(batches, total, progress), task=kind)


def _batch_size(program: Program) -> int:
    """So many samples at once that all values of the program, which are kept to compare them, fit into `KEPT`."""
    elements = sum(spec.elements() for node in program.nodes for spec in node.outputs)
    return max(1, min(LARGEST_BATCH, KEPT // (4 * elements)))


def _comparison_inputs(
    student: Student, data: str | Data | None, split: str, samples: int | None, batch_size: int, task: Task
) -> tuple[Iterable[Example], int]:
    """Input batches to compare on and their number of samples."""
    if data is None:
        count, generator = samples or 64, torch.Generator().manual_seed(1)
        parts = [torch.split(spec.sample(count, generator), batch_size) for spec in student.inputs]
        return zip(*parts, strict=True), count
    loaded = evaluation_data(data, student.data, None, None, task=task)
    chosen = loaded.test if split == "test" else loaded.train
    if chosen is None:
        raise UsageError(f"{loaded.source}: has no test set; add test/ or val/, or give --split train.")
    count = min(samples or len(chosen), len(chosen))
    indices = torch.split(chosen.spread(count), batch_size)  # folders come class by class
    return (loaded.inputs(chosen, part) for part in indices), count


def _watched(batches: Iterable[Example], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Example]:
    done = 0
    for x in batches:
        yield x
        done += samples_in(x)
        if progress is not None:
            progress(done, total)
