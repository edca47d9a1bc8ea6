"""Accuracy of a student, an artifact or a float model."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from bnnconvert.errors import UsageError
from bnnconvert.load.task import load_task
from bnnconvert.pipeline.student import Student, evaluation_data
from bnnconvert.pipeline.targets import Target, kind_of, label_of, open_target, recorded_data
from bnnconvert.runtime import Session
from bnnconvert.train import evaluate_samples
from bnnconvert.values.data import Data, check_fits
from bnnconvert.values.inputs import InputSpec
from bnnconvert.values.report import EvaluationReport


def evaluate(
    target: Target,
    data: str | Data | None = None,
    *,
    split: Literal["test", "train"] = "test",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: str | None = None,
    model: str | None = None,
    trust_pickle: bool = False,
    batch_size: int = 500,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Score of a run's student, an artifact or a float model on a split of the data, by default top-1 accuracy.

    Raises: UsageError, RefusalError, ArtifactError.
    """
    opened = open_target(target, model=model, trust_pickle=trust_pickle, threads=threads)
    kind, record = kind_of(opened), recorded_data(opened)
    chosen = load_task(task or (opened.task if isinstance(opened, Student) else "classification"))
    loaded = evaluation_data(data, record, mean, std, task=chosen)
    samples = loaded.test if split == "test" else loaded.train
    if samples is None:
        raise UsageError(f"{loaded.source}: has no test set; add test/ or val/, or give --split train.")
    predict = _predictor(opened, loaded)
    done = 0

    def watched(*given: Any) -> Any:
        nonlocal done
        output = predict(*given)
        done += len(given[0])
        if progress is not None:
            progress(done, len(samples))
        return output

    start = time.perf_counter()
    with torch.no_grad():
        accuracy = evaluate_samples(
            watched, samples, loaded, task=chosen, batch_size=batch_size, as_numpy=kind == "artifact"
        )
    return EvaluationReport(
        accuracy.accuracy,
        accuracy.samples,
        kind,
        label_of(target, opened),
        split,
        time.perf_counter() - start,
        chosen.metric,
    )


def _predictor(opened: Student | Session | nn.Module, data: Data) -> Callable[[Any], Any]:
    if isinstance(opened, Session):
        taken = (InputSpec.model_validate({"shape": s.sized(1), "dtype": s.dtype}) for s in opened.program.inputs)
        check_fits(data, tuple(taken), None)
        return opened.run
    module = opened.model if isinstance(opened, Student) else opened
    if isinstance(opened, Student):
        check_fits(data, opened.inputs, None)
    return module.cpu().eval()
