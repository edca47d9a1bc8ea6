"""Residual blocks: the part of a graph between a value and the addition that it reaches by two ways."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from bnnconvert.graph import ACTIVATIONS, PASS_THROUGH, is_add, is_call_of, only_user


@dataclass(frozen=True)
class Block:
    """Nodes of a residual block in order, its addition and the activations right behind it included."""

    entry: Node
    nodes: tuple[Node, ...]

    @property
    def exit(self) -> Node:
        """The node whose value leaves the block."""
        return self.nodes[-1]


def residual_blocks(graph: GraphModule) -> Iterator[Block]:
    """Blocks in order; of blocks inside each other the inner one."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    dominators: dict[Node, Node | None] = {}
    taken: set[Node] = set()
    for node in order:
        dominators[node] = _common(node.all_input_nodes, dominators, order)
        if is_add(node) and len(node.all_input_nodes) == 2 and (entry := dominators[node]) is not None:
            nodes = _between(entry, node, order)
            end = node
            while (user := only_user(end)) is not None and is_call_of(graph, user, (*ACTIVATIONS, *PASS_THROUGH)):
                nodes.append(user)
                end = user
            is_closed = all(user in nodes for inner in nodes[:-1] for user in inner.users)
            if is_closed and taken.isdisjoint(nodes):
                taken.update(nodes)
                yield Block(entry, tuple(nodes))


def _common(parents: list[Node], dominators: dict[Node, Node | None], order: dict[Node, int]) -> Node | None:
    """Last node that every way to all of `parents` passes."""
    common: Node | None = None
    for i, parent in enumerate(parents):
        other: Node | None = parent
        common = parent if i == 0 else common
        while common is not other:
            if common is None or other is None:
                return None
            if order[common] > order[other]:
                common = dominators[common]
            else:
                other = dominators[other]
    return common


def _between(entry: Node, end: Node, order: dict[Node, int]) -> list[Node]:
    """Nodes on the ways from `entry`, without it, to `end`, in order."""
    found, todo = {end}, [end]
    while todo:
        for parent in todo.pop().all_input_nodes:
            if parent is not entry and parent not in found:
                found.add(parent)
                todo.append(parent)
    return sorted(found, key=order.__getitem__)
