"""What a page about one network shows, as plain data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One node of a graph: what it calls, where the user has it, what it gives."""

    name: str
    path: str
    """The user's module that it calls, or in whose code the call stands."""
    kind: str
    shape: tuple[int, ...] | None
    inputs: tuple[str, ...]
    """Names of the steps that it reads."""
    decision: str | None = None
    """Of a weight layer: binary, weight-only or float."""


@dataclass(frozen=True)
class Drawing:
    """One graph in order; graphs inside code that cannot be followed are drawings of their own, by their path."""

    path: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Page:
    """A network before and after, its layers, and how it was trained where it was."""

    title: str
    facts: tuple[str, ...]
    before: tuple[Drawing, ...]
    after: tuple[Drawing, ...]
    layers: tuple[dict[str, Any], ...]
    totals: dict[str, Any]
    history: tuple[dict[str, Any], ...] = ()
    metric: str = "accuracy"
