"""Which values come in with their channels last: tokens (T, C) and grids (H, W, C), as linear layers read them.

The engine holds every value with its channels last, so such a value goes in as it is, and an order of axes that brings
the channels to the front is another name for the same numbers. What a value is, the nodes that read it say.
"""

from collections.abc import Mapping, Sequence

from bnnconvert.values.program import Node, Value, ValueSpec

PERMUTE, TRANSPOSE = "aten.permute.default", "aten.transpose.int"
_READERS = {"aten.layer_norm.default": "input", "aten.linear.default": "input"}
"""Operators over the last axis, and the name of what they read."""
_SAME_ORDER = tuple(f"aten.{name}." for name in ("contiguous", "clone", "add", "sub", "mul", "gelu", "relu", "silu"))


def axes_after(node: Node, rank: int) -> list[int]:
    """Where each axis of a permuted value comes from; `rank` counts the samples' axis."""
    axes = list(range(rank))
    if node.op == TRANSPOSE:
        first, second = (int(node.arguments[name]) % rank for name in ("dim0", "dim1"))  # type: ignore[arg-type]
        axes[first], axes[second] = axes[second], axes[first]
        return axes
    dims = node.arguments["dims"]
    assert isinstance(dims, tuple)
    return [int(d) % rank for d in dims]  # type: ignore[arg-type]


def read_as_tokens(nodes: Sequence[Node], specs: Mapping[str, ValueSpec]) -> set[str]:
    """Names of values of three axes and more that some of the nodes, neighbours in their order, read as tokens."""
    found: set[str] = set()
    for node in reversed(nodes):
        read = list(node.reads)
        made = node.outputs[0].name
        if node.op in _READERS:
            operand = node.arguments[_READERS[node.op]]
            read = [operand.value] if isinstance(operand, Value) else []
        elif node.op in (PERMUTE, TRANSPOSE):
            rank = len(specs[read[0]].shape) if read else 0
            if made in found or rank < 3 or axes_after(node, rank)[:2] != [0, rank - 1]:
                continue
        elif made not in found or not node.op.startswith(_SAME_ORDER):
            continue
        rank_of_made = len(node.outputs[0].shape)
        found.update(name for name in read if len(specs[name].shape) == rank_of_made >= 3)
    return found
