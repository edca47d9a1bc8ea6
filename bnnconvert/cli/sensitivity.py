"""`bnnconvert sensitivity`: what each layer of a run costs by being binary."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options


def sensitivity(
    run: options.Run = None,
    data: options.Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Training images to measure on.")] = 1024,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, too, as a PNG picture.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu, cuda or cuda:N; default: a GPU if there is one.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure what each layer costs when it alone is binary, and when it alone stays float."""
    means, stds = options.numbers_of(mean, "--mean"), options.numbers_of(std, "--std")
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.report.sensitivity import plot_sensitivity, sensitivity_notes, sensitivity_table
    from bnnconvert.values.files import atomic_write

    with render.CountBar("layers") as bar:
        report = pipeline.sensitivity(run, data, mean=means, std=stds, samples=samples, device=device, progress=bar)
    if plot is not None:
        with atomic_write(plot) as picture:
            plot_sensitivity(report, picture)
    if as_json:
        layers = [asdict(layer) | {"name": layer.layer} for layer in report.layers]
        render.as_json(asdict(report) | {"layers": layers})
        return
    render.table(sensitivity_table(report))
    render.lines(sensitivity_notes(report))
