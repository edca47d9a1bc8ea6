"""`bnnconvert verify`: prove an artifact by its golden input, or against the student that it came from."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options
from bnnconvert.cli.evaluate import Split
from bnnconvert.errors import VerificationError


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A packed file.")],
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Compare with this run's student, layer by layer.")
    ] = None,
    data: options.Data = None,
    split: Annotated[Split, typer.Option(help="Part of the data.")] = Split.TEST,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many samples; default: all, or 64 random ones without --data."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Prove that an artifact computes what it should."""
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.report import verification
    from bnnconvert.values.report import GoldenReport

    with render.CountBar("samples") as bar:
        report = pipeline.verify(artifact, against=against, data=data, split=split.value, samples=samples, progress=bar)
    if isinstance(report, GoldenReport):
        if as_json:
            render.as_json(asdict(report) | {"passed": True})
        else:
            render.lines(verification.golden_notes(report))
        return
    if as_json:
        render.as_json(asdict(report) | {"passed": report.passed})
    else:
        render.table(verification.flips_table(report))
        render.lines(verification.verify_notes(report))
    if not report.passed:
        raise VerificationError(f"{artifact}: {report.failure}; was the file exported from this run as it is now?")
