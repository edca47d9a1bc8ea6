"""Pictures by matplotlib, which is optional."""

from typing import Any

from bnnconvert.errors import UsageError


def new_figure(*, width: float, height: float) -> Any:
    """An empty figure that needs no display. Units: inches.

    Raises: UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError('A plot needs matplotlib; install it with `pip install "bnnconvert[plot]"`.') from error
    return Figure(figsize=(width, height), layout="constrained")
