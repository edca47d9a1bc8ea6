"""`bnnconvert finetune`: distil a run's student from the original."""

import shlex
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from bnnconvert.cli import options


class Augment(StrEnum):
    """Ways to augment images."""

    AUTO = "auto"
    NONE = "none"
    CROP = "crop"
    CROP_FLIP = "crop-flip"


def finetune(
    run: options.Run = None,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    task: options.Task = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Default: the recipe's.")] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Over all processes; default: the recipe's.")
    ] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Highest learning rate; default: the recipe's.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu, cuda or cuda:N; default: a GPU if there is one.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Every random number comes from it.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run was stopped.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, from the student as converted.")] = False,
    mixed_precision: options.MixedPrecision = options.Precision.NO,
    compile: options.Compile = False,
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Processes that read images.")] = 0,
    augment: Annotated[
        Augment, typer.Option(help="Random crops, for colour images mirrored ones too (auto), or less.")
    ] = Augment.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Train the student, the original as its teacher."""
    means, stds = options.numbers_of(mean, "--mean"), options.numbers_of(std, "--std")
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.train.memory import keep_freed_memory

    keep_freed_memory()
    student = pipeline.open_run(run)
    if run is None and student.run is not None:
        render.note(f"Run: {student.run.path}")
    with render.TrainingBar() as bar:
        report = pipeline.finetune(
            student,
            data,
            mean=means,
            std=stds,
            task=task,
            resume=resume,
            restart=restart,
            progress=bar,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            lr=lr,
            device=device,
            seed=seed,
            augment=augment.value,
            mixed_precision=mixed_precision.value,
            compile=compile,
            workers=workers,
        )
    if as_json:
        render.as_json(asdict(report) | {"run": str(student.run.path) if student.run is not None else None})
    else:
        from bnnconvert.report.training import epochs_table, training_notes

        render.table(epochs_table(report))
        render.lines(training_notes(report))
    where = "" if run is None else f" {shlex.quote(str(run))}"
    exports = pipeline.unpackable(student.recipe) is None
    render.next_step(f"bnnconvert export{where} --packed" if exports else f"bnnconvert evaluate{where}")
