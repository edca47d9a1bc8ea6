"""A recipe's surrogate gradients as a picture."""

from pathlib import Path
from typing import Any

from bnnconvert.errors import UsageError, first_line
from bnnconvert.report.figure import new_figure
from bnnconvert.values.curves import Curves, Moment

STEEP = 20.0
"""A gradient beyond this would flatten every other one, so its axis turns logarithmic above 1."""


def draw_curves(curves: list[Curves], path: Path, *, title: str) -> None:
    """Write a picture with a row per estimator: sign and its surrogate on the left, the gradient on the right.

    Raises: UsageError without matplotlib, or where the file cannot be written.
    """
    figure = new_figure(width=10, height=3.2 * len(curves) + 0.4)
    figure.suptitle(title)
    for row, (left, right) in zip(curves, figure.subplots(len(curves), 2, squeeze=False), strict=True):
        _forward(left, row)
        _gradient(right, row)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--plot {path}: cannot be written ({first_line(error)}); give a file such as recipe.png."
        ) from error


def _forward(axes: Any, row: Curves) -> None:
    axes.plot(row.x, row.forward, color="black", linewidth=1, label="forward")
    for shade, moment in zip(_shades(row), row.moments, strict=True):
        axes.plot(row.x, moment.surrogate, color=shade, label=_label(row, moment, "surrogate"))
    axes.set(title=row.title, xlabel="x", ylabel="sign and its surrogate", ylim=(-2.2, 2.2))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _gradient(axes: Any, row: Curves) -> None:
    for shade, moment in zip(_shades(row), row.moments, strict=True):
        axes.plot(row.x, moment.gradient, color=shade, label=_label(row, moment, "gradient"))
    if max(max(moment.gradient) for moment in row.moments) > STEEP:
        axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="x", ylabel="gradient")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _shades(row: Curves) -> list[tuple[float, float, float]]:
    """From blue at the start of the run to red at its end."""
    last = max(len(row.moments) - 1, 1)
    return [(0.1 + 0.75 * i / last, 0.25, 0.75 - 0.65 * i / last) for i in range(len(row.moments))]


def _label(row: Curves, moment: Moment, what: str) -> str:
    return what if len(row.moments) == 1 else f"at {moment.progress:.0%} of the run"
