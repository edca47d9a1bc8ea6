"""`bnnconvert export`: write a student in a form that runs elsewhere, and prove that it computes the same."""

import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options
from bnnconvert.errors import UsageError


class Edges(StrEnum):
    """Forms of the float layers at both ends."""

    FLOAT = "float"
    INT8 = "int8"


def export(
    run: options.Run = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="The packed artifact, one file that a session runs.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another format; --packed is --format packed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write; default: NAME.packed.safetensors in the current folder."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="A graph inside code that no file can hold, as the refusal names it, by itself."
        ),
    ] = None,
    edges: Annotated[
        Edges, typer.Option(help="The float layers at both ends; int8 is calibrated on the data.")
    ] = Edges.FLOAT,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the student as one verified file."""
    if packed == (format is not None):
        raise UsageError("export needs either --packed or --format NAME, to know what to write.")
    means, stds = options.numbers_of(mean, "--mean"), options.numbers_of(std, "--std")
    from bnnconvert import pipeline
    from bnnconvert.cli import render

    student = pipeline.open_run(run)
    if run is None and student.run is not None:
        render.note(f"Run: {student.run.path}")
    report = pipeline.export(
        student, out, format=format or "packed", part=part, edges=edges.value, data=data, mean=means, std=stds
    )
    if as_json:
        render.as_json(asdict(report))
    else:
        from bnnconvert.report.export import export_notes, layers_table, predictions_table, sizes_table

        render.table(layers_table(report))
        render.table(sizes_table(report))
        if report.predictions is not None:
            render.table(predictions_table(report.predictions))
        render.lines(export_notes(report))
    if format not in (None, "packed"):
        return
    against = "" if student.run is None or part is not None else f" --against {shlex.quote(_shown(student.run.path))}"
    render.next_step(f"bnnconvert verify {shlex.quote(_shown(Path(report.path)))}{against}")


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
