"""`bnnconvert compare`: several recipes on one model under equal conditions."""

from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options


def compare(
    model_file: Annotated[
        str, typer.Argument(metavar="MODEL", help="File (.pt, .pth, .pt2, .safetensors) or package.module:factory.")
    ],
    data: Annotated[
        str, typer.Option(metavar="DATA", help="Folder, digits, or package.module:factory; with a test set.")
    ],
    recipes: Annotated[str, typer.Option(metavar="A,B,C", help="Names or TOML files, with commas.")],
    epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of each; default: each recipe's own.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, packed files, table and plot go.")] = Path(
        "compare"
    ),
    model: options.Factory = None,
    trust_pickle: options.TrustPickle = False,
    input_shape: options.InputShape = None,
    mean: options.Mean = None,
    std: options.Std = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="cpu, cuda or cuda:N; default: a GPU if there is one.")
    ] = None,
    mixed_precision: options.MixedPrecision = options.Precision.NO,
    compile: options.Compile = False,
    seed: Annotated[int, typer.Option(metavar="N", help="The same for each recipe.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Train and measure several recipes; typed again, it goes on where it was stopped."""
    shape = options.inputs_of(input_shape)
    means, stds = options.numbers_of(mean, "--mean"), options.numbers_of(std, "--std")
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.errors import UsageError
    from bnnconvert.report.compare import comparison_notes, comparison_table, plot_comparison
    from bnnconvert.train.memory import keep_freed_memory
    from bnnconvert.values.files import atomic_write, write_text

    keep_freed_memory()
    with render.TrainingBar() as bar:
        found = pipeline.compare(
            model_file,
            data,
            [name.strip() for name in recipes.split(",")],
            model=model,
            trust_pickle=trust_pickle,
            input_shape=shape,
            mean=means,
            std=stds,
            epochs=epochs,
            seed=seed,
            device=device,
            mixed_precision=mixed_precision.value,
            compile=compile,
            out=out,
            progress=bar,
        )
    table = comparison_table(found)
    write_text(out / "table.md", table.markdown() + "\n")
    try:
        with atomic_write(out / "plot.png") as picture:
            plot_comparison(found, picture)
    except UsageError as error:
        render.warning(str(error))
    if as_json:
        render.as_json(found.model_dump())
        return
    render.table(table)
    render.lines(comparison_notes(found))
    render.note(f"Written: {out}/compare.json, table.md and plot.png")
