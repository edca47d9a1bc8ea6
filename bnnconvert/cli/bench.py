"""`bnnconvert bench`: the speed of an artifact, beside its float original in other runtimes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options


def bench(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A packed file.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="Time its float original, too, in every runtime that is installed."),
    ] = None,
    model: options.Factory = None,
    trust_pickle: options.TrustPickle = False,
    peers: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="These runtimes only, such as onnxruntime,openvino-int8.")
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of every runtime.")] = 1,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Samples a run.")] = 1,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Turns, of three runs each.")] = 20,
    as_json: options.AsJson = False,
) -> None:
    """Time an artifact, layer by layer and beside its float original."""
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.report.bench import bench_notes, layers_table, peers_table

    with render.CountBar("turns") as bar:
        report = pipeline.bench(
            artifact,
            against,
            model=model,
            trust_pickle=trust_pickle,
            peers=None if peers is None else [name.strip() for name in peers.split(",")],
            threads=threads,
            batch=batch,
            rounds=rounds,
            progress=bar,
        )
    if as_json:
        render.as_json(asdict(report) | {"slow_layers": report.slow_layers})
        return
    render.table(layers_table(report))
    render.table(peers_table(report))
    render.lines(bench_notes(report))
