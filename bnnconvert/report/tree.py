"""Layers as the tree of modules in which they stand, with sums for each module."""

from collections.abc import Iterator, Sequence
from typing import Any

from bnnconvert.report.table import Column, Table, number
from bnnconvert.report.units import as_count, as_shape

_SUMS = ("float_bytes", "packed_bytes", "macs")
Layer = dict[str, Any]


def layer_tree(title: str, layers: Sequence[Layer]) -> Table:
    """One row per layer and per module that holds some, in execution order."""
    decided = any("decision" in layer for layer in layers)
    columns = (
        Column("module"),
        Column("kind"),
        Column("weight"),
        Column("output"),
        *((Column("decision"), Column("reason")) if decided else ()),
        number("float B"),
        number("packed B" if decided else "as bits B"),
        number("mult-adds"),
    )
    tree: dict[str, Any] = {}
    for layer in layers:
        *modules, leaf = str(layer["name"]).split(".")
        place = tree
        for name in modules:
            place = place.setdefault(name, {})
        place[leaf] = _Leaf(layer)
    rows = tuple(_row(text, branch, decided=decided) for text, branch in _walk(tree, ""))
    return Table(title, columns, rows, _row(f"{len(layers)} layers", tree, decided=decided))


class _Leaf(dict[str, Any]):
    """A layer, which is no module with others inside."""


def _walk(tree: Layer, before: str) -> Iterator[tuple[str, Layer]]:
    for position, (name, branch) in enumerate(tree.items()):
        is_end = position == len(tree) - 1
        yield f"{before}{'└─ ' if is_end else '├─ '}{name}", branch
        if not isinstance(branch, _Leaf):
            yield from _walk(branch, before + ("   " if is_end else "│  "))


def _row(text: str, branch: Layer, *, decided: bool) -> tuple[str, ...]:
    layers = list(_leaves(branch))
    sums = [sum(int(layer[key]) for layer in layers) for key in _SUMS]
    numbers = (f"{sums[0]:,}", f"{sums[1]:,}", as_count(sums[2]))
    if not isinstance(branch, _Leaf):
        return (text, "", "", "", *(("", "") if decided else ()), *numbers)
    said = (str(branch["decision"]), str(branch["reason"])) if decided else ()
    output = as_shape(branch["output_shape"]) if branch["output_shape"] else ""
    return (text, str(branch["kind"]), as_shape(branch["weight_shape"]), output, *said, *numbers)


def _leaves(branch: Layer) -> Iterator[Layer]:
    if isinstance(branch, _Leaf):
        yield branch
    else:
        for inner in branch.values():
            yield from _leaves(inner)
