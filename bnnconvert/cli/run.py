"""`bnnconvert run`: an artifact on an input from a file, its output into another."""

from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options


def run(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A packed file.")],
    input_files: Annotated[
        list[Path],
        typer.Option(
            "--input", metavar="X.npy", help="Samples as the model sees them, batch first; once for each input."
        ),
    ],
    output_file: Annotated[
        Path, typer.Option("--output", metavar="Y.npy", help="Where the output goes; .npz if there are several.")
    ],
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the session.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Run an artifact on an array of inputs."""
    from bnnconvert.cli import arrays, render
    from bnnconvert.runtime import Session

    arrays.check_names(input_files, output_file)
    session = Session(artifact, threads=threads)
    named = arrays.named_leaves(session.run(*map(arrays.read, input_files)))
    arrays.write(output_file, named)
    shapes = {name: {"shape": list(a.shape), "dtype": a.dtype.name} for name, a in named.items()}
    if as_json:
        render.as_json({"artifact": str(artifact), "output": str(output_file), "outputs": shapes})
        return
    written = ", ".join(f"{name} {tuple(shape['shape'])} {shape['dtype']}" for name, shape in shapes.items())
    render.lines([f"{output_file}: {written}."])
