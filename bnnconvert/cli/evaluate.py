"""`bnnconvert evaluate`: top-1 accuracy, or another task's score, of a run's student, an artifact or a float model."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from bnnconvert.cli import options


class Split(StrEnum):
    """Parts of a data set."""

    TEST = "test"
    TRAIN = "train"


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|ARTIFACT|MODEL", help="Default: the newest *.bnn in the current folder.", show_default=False
        ),
    ] = None,
    data: options.Data = None,
    split: Annotated[Split, typer.Option(help="Part of the data.")] = Split.TEST,
    mean: options.Mean = None,
    std: options.Std = None,
    task: options.Task = None,
    model: options.Factory = None,
    trust_pickle: options.TrustPickle = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Samples at a time.")] = 500,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of an artifact's session.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Measure the accuracy, or another task's score, of a run, artifact or model."""
    means, stds = options.numbers_of(mean, "--mean"), options.numbers_of(std, "--std")
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.report.units import as_duration, as_percent

    subject = pipeline.open_run() if target is None else target
    if isinstance(subject, pipeline.Student) and subject.run is not None:
        render.note(f"Run: {subject.run.path}")
    with render.CountBar("samples") as bar:
        report = pipeline.evaluate(
            subject,
            data,
            split=split.value,
            mean=means,
            std=stds,
            task=task,
            model=model,
            trust_pickle=trust_pickle,
            batch_size=batch_size,
            threads=threads,
            progress=bar,
        )
    if as_json:
        render.as_json(asdict(report))
        return
    share = as_percent(report.accuracy)
    score = f"{share} of" if report.metric == "accuracy" else f"{report.metric} {share} on"
    render.lines(
        [
            (
                f"{report.target}: {score} {report.samples:,} {report.split} samples "
                f"({report.kind}, {as_duration(report.seconds)})."
            )
        ]
    )
