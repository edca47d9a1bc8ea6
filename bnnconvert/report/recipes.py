"""The shipped recipes as a table."""

from bnnconvert.report.table import Column, Table, number
from bnnconvert.values.recipe import Recipe


def recipes_table(recipes: list[Recipe]) -> Table:
    """One row per recipe."""
    columns = (Column("recipe"), Column("title"), number("epochs"), Column("what it does"), Column("source"))
    rows = tuple((r.name, r.title, str(r.training.epochs), r.summary, r.source) for r in recipes)
    return Table("Recipes", columns, rows)
