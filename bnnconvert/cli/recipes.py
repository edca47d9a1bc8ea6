"""`bnnconvert recipes`: the shipped recipes, or one of them in full."""

from typing import Annotated

import typer

from bnnconvert.cli import options


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="Show this one in full.", show_default=False)
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the recipes, or print one to copy and change."""
    from bnnconvert.cli import render
    from bnnconvert.recipe import load_recipe, recipe_names, recipe_text

    found = [load_recipe(n) for n in ([name] if name is not None else recipe_names())]
    if as_json:
        render.as_json([recipe.model_dump(mode="json") for recipe in found])
    elif name is not None:
        render.lines(recipe_text(name).splitlines())
    else:
        from bnnconvert.report.recipes import recipes_table

        render.table(recipes_table(found))
        render.next_step("bnnconvert convert MODEL --recipe NAME")
