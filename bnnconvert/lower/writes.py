"""Writes into parts of a tensor: `y[:, :4] = x` as the whole tensor with that part replaced.

A part is a chain of views, such as a slice of a transpose. What is written goes back through each of them.
"""

from collections.abc import Iterator
from typing import Any

from torch.fx import Node

VIEWS = {
    "aten.slice.Tensor": "aten.slice_scatter.default",
    "aten.select.int": "aten.select_scatter.default",
    "aten.view.default": "aten.reshape.default",
    "aten.unsqueeze.default": "aten.reshape.default",
    "aten.squeeze.dim": "aten.reshape.default",
    "aten.squeeze.dims": "aten.reshape.default",
    "aten.transpose.int": "aten.transpose.int",
    "aten.permute.default": "aten.permute.default",
}
"""Views that a write can go back through, and the operator that does so."""


def is_view(node: Node) -> bool:
    """Whether a node's value is part of its input's memory."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def line_of(changed: Node) -> list[Node]:
    """The tensor that is written into, what it is a view of, and so on to the one that is no view."""
    line = [changed]
    while is_view(line[-1]):
        line.append(line[-1].all_input_nodes[0])
    return line


def reads_old(line: list[Node], write: Node) -> Node | None:
    """A node behind the write that reads it through another view from before, if there is one."""
    order = {node: number for number, node in enumerate(write.graph.nodes)}
    for view in _views_below(line[-1]):
        if view not in line and order[view] < order[write]:
            late = next((user for user in view.users if order[user] > order[write]), None)
            if late is not None:
                return late
    return None


def _views_below(node: Node) -> Iterator[Node]:
    for user in node.users:
        if is_view(user) and user.all_input_nodes[0] is node:
            yield user
            yield from _views_below(user)


def back(view: Node, given: dict[str, Any], value: Any, whole: Any, shape: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments of the operator in `VIEWS`, from the view's own, what is written, and what it is written into."""
    name = str(view.target)
    if name in ("aten.slice.Tensor", "aten.select.int"):
        return {"self": whole, "src": value} | {k: v for k, v in given.items() if k != "self"}
    if name == "aten.transpose.int":
        return given | {"self": value}
    if name == "aten.permute.default":
        axes = [axis % len(shape) for axis in given["dims"]]
        return {"self": value, "dims": tuple(axes.index(i) for i in range(len(axes)))}
    return {"self": value, "shape": shape}
