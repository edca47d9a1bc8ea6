"""The shipped recipes as a table."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.values.recipe import Recipe


def recipes_table(recipes: list[Recipe], *, exported: list[bool]) -> Table:
    """One row per recipe; `exported` says whether its students can be."""
    title, *words = map(Column, ("title", "exports", "what it does", "source"))
    columns = (Column("recipe"), title, number("epochs"), *words)
    rows = tuple(
        (r.name, r.title, str(r.training.epochs), "yes" if exports else "no", r.summary, r.source)
        for r, exports in zip(recipes, exported, strict=True)
    )
    return Table("Recipes", columns, rows)
