"""A comparison of recipes in words, as a table, and as a plot."""

from pathlib import Path

from bnnconvert.report.figure import new_figure
from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_percent
from bnnconvert.values.comparison import ComparedRecipe, Comparison

TITLES: tuple[str, ...] = ("converted", "fine-tuned", "gap", "published", "packed", "agreement")
TITLES += ("bytes", "ms", "step", "epochs", "minutes")


def comparison_table(found: Comparison) -> Table:
    """One row per recipe, the float model first; gaps in points, steps in units of the float model's."""
    own: tuple[str, ...] = ("float", "", as_percent(found.float_accuracy), "", "", "", "", f"{found.float_bytes:,}")
    own += (f"{found.float_milliseconds:.3f}", "1.00", "", "")
    rows = (own, *(_row(recipe, found) for recipe in found.recipes))
    return Table("Recipes compared", (Column("recipe"), *map(number, TITLES)), rows)


def _row(recipe: ComparedRecipe, found: Comparison) -> tuple[str, ...]:
    figures = recipe.figures
    if figures is None:
        return (recipe.recipe, *[""] * len(TITLES))
    milliseconds = found.milliseconds.get(recipe.recipe)
    return (
        recipe.recipe,
        as_percent(figures.converted),
        as_percent(figures.fine_tuned),
        f"{100 * (found.float_accuracy - figures.fine_tuned):.2f}",
        "" if recipe.published is None else f"{recipe.published.gap:.1f}, {recipe.published.on}",
        "" if figures.packed is None else as_percent(figures.packed),
        "" if figures.agreement is None else as_percent(figures.agreement),
        "" if figures.file_bytes is None else f"{figures.file_bytes:,}",
        "" if milliseconds is None else f"{milliseconds:.3f}",
        f"{figures.step_ratio:.2f}",
        str(figures.epochs),
        f"{figures.minutes:.0f}",
    )


def comparison_notes(found: Comparison) -> list[str]:
    """What the numbers are, and why some are missing."""
    samples = next((r.figures.samples for r in found.recipes if r.figures is not None), 0)
    note = (
        f"Accuracy on {samples:,} test images; gap in points, and what its paper has; time of one sample on one "
        "thread; step: time of a training step, teacher included, over the float model's."
    )
    return [note, *(f"{r.recipe}: {r.refusal}" for r in found.recipes if r.refusal is not None)]


def plot_comparison(found: Comparison, path: Path) -> None:
    """Accuracy against bytes and against time, as a picture.

    Raises: UsageError where matplotlib is not installed.
    """
    figure = new_figure(width=11, height=4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label in ((left, "packed file, KiB"), (right, "one sample on one thread, ms")):
        axes.axhline(100 * found.float_accuracy, color="grey", linestyle="--", linewidth=1)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("test accuracy, %")
    right.annotate(
        "float", (1, 100 * found.float_accuracy), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    for recipe in found.recipes:
        figures, milliseconds = recipe.figures, found.milliseconds.get(recipe.recipe)
        if figures is None or figures.file_bytes is None or milliseconds is None:
            continue
        accuracy = 100 * figures.fine_tuned
        for axes, x in ((left, figures.file_bytes / 1024), (right, milliseconds)):
            axes.plot(x, accuracy, "o", color="tab:blue", markersize=4)
            axes.annotate(recipe.recipe, (x, accuracy), xytext=(4, 3), textcoords="offset points", fontsize=8)
    figure.savefig(path, dpi=150, format="png")
