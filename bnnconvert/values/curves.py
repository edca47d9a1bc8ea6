"""Curves of surrogate gradients as numbers, from the stage that can compute them to the one that draws them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """A surrogate at one point of the run: its derivative, and the function that has this derivative and is 0 at 0.

    `progress` is the share of the run that is done.
    """

    progress: float
    surrogate: tuple[float, ...]
    gradient: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """One estimator of a recipe over `x`, at several moments, or at one where it does not change."""

    title: str
    x: tuple[float, ...]
    forward: tuple[float, ...]
    moments: tuple[Moment, ...]
