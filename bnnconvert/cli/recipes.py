"""`bnnconvert recipes`: the shipped recipes, one of them in full, or what any recipe may ask for."""

from pathlib import Path
from typing import Annotated

import typer

from bnnconvert.cli import options
from bnnconvert.errors import UsageError


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="Show this one in full.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw its surrogate gradients into this file.")
    ] = None,
    rows: Annotated[
        bool, typer.Option("--options", help="List what any recipe may ask for: binarizers, losses, rewrites.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the recipes, or print one to copy and change."""
    from bnnconvert import pipeline
    from bnnconvert.cli import render
    from bnnconvert.recipe import load_recipe, recipe_names, recipe_text

    if plot is not None and name is None:
        raise UsageError(
            "--plot draws one recipe; give its name, for example bnnconvert recipes irnet --plot irnet.png."
        )
    if rows:
        _list_options(as_json=as_json)
        return
    found = [load_recipe(n) for n in ([name] if name is not None else recipe_names())]
    reasons = [pipeline.unpackable(recipe) for recipe in found]
    if plot is not None:
        from bnnconvert.pipeline.curves import recipe_curves
        from bnnconvert.report.curves import draw_curves

        draw_curves(recipe_curves(found[0]), plot, title=found[0].title)
    if as_json:
        shown = zip(found, reasons, strict=True)
        render.as_json([recipe.model_dump(mode="json") | {"unpackable": reason} for recipe, reason in shown])
    elif plot is not None:
        render.lines([f"Surrogate gradients of {found[0].name}: {plot}"])
    elif name is not None:
        render.lines(recipe_text(name).splitlines())
        if reasons[0] is not None:
            render.note(f"It trains and cannot be exported: {reasons[0]}.")
    else:
        from bnnconvert.report.recipes import recipes_table

        render.table(recipes_table(found, exported=[reason is None for reason in reasons]))
        render.next_step("bnnconvert convert MODEL --recipe NAME, or bnnconvert recipes --options")


def _list_options(*, as_json: bool) -> None:
    from dataclasses import asdict

    from bnnconvert.cli import render
    from bnnconvert.report.options import choices, options_table

    if as_json:
        render.as_json([asdict(choice) for choice in choices()])
    else:
        render.table(options_table(choices()))
