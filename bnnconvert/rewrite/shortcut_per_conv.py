"""One identity shortcut around every binary convolution, as Bi-Real Net has it.

    residual block   s + U2(U1(x))                ->   x1 = U1(x) + s,  x1' = act(x1),  U2(x1') + x1'
    plain chain      U(x)                         ->   U(x) + x          where the shapes agree

U is a binary convolution with the batch norm that follows it, s the block's own shortcut (x or a projection of it).
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from bnnconvert.graph import (
    ACTIVATIONS,
    BATCH_NORMS,
    PASS_THROUGH,
    binary_inputs,
    input_of,
    is_add,
    is_call_of,
    only_user,
    shape_of,
)
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class ShortcutPerConv(Rewrite):
    """Give every binary convolution its own shortcut."""

    name: ClassVar[str] = "shortcut-per-conv"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        blocks = [block for add in graph.graph.nodes if is_add(add) and (block := _block(graph, add)) is not None]
        for block in blocks:
            yield from _block_sites(graph, block)
        in_block = {conv for block in blocks for conv in block.convs}
        for conv in binary_inputs(graph):
            end = _unit_end(graph, conv)
            if not is_call_of(graph, conv, BinaryConv2d) or conv in in_block or any(is_add(u) for u in end.users):
                continue
            source = _stream(graph, conv)
            if shape_of(end) == shape_of(source):
                yield Site(end, (source,))
            else:
                shapes = f"{shape_of(source)} goes in and {shape_of(end)} comes out"
                yield Refusal(str(conv.target), f"no identity shortcut fits, {shapes}")

    def apply(self, graph: GraphModule, site: Site) -> None:
        end, (source, *old) = site.node, site.others
        if old:
            end.replace_input_with(old[0], source)
            return
        with graph.graph.inserting_after(end):
            added = graph.graph.call_function(operator.add, (end, source))
        added.meta = dict(end.meta)
        end.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)


@dataclass(frozen=True)
class _Block:
    """A residual block: its addition, its shortcut's value, the binary convolutions of its main branch in order."""

    add: Node
    side: Node
    convs: list[Node]


def _block(graph: GraphModule, add: Node) -> _Block | None:
    """The residual block that ends at `add`, if its main branch is a chain of two or more binary convolutions."""
    if len(add.all_input_nodes) != 2:
        return None
    first, second = add.all_input_nodes
    for main, side in ((first, second), (second, first)):
        convs: list[Node] = []
        node = main
        while True:
            node = _skip_back_to(graph, node, side)
            if node is side or not is_call_of(graph, node, BinaryConv2d) or only_user(_unit_end(graph, node)) is None:
                break
            convs.append(node)
            node = input_of(node)
        if len(convs) > 1:
            return _Block(add, side, convs[::-1])
    return None


def _skip_back_to(graph: GraphModule, node: Node, goal: Node) -> Node:
    """First node at or before `node` that is `goal`, or no batch norm, activation or dropout."""
    while node is not goal and is_call_of(graph, node, (*BATCH_NORMS, *ACTIVATIONS, *PASS_THROUGH)):
        node = input_of(node)
    return node


def _block_sites(graph: GraphModule, block: _Block) -> Iterator[Site | Refusal]:
    ends = [_unit_end(graph, conv) for conv in block.convs]
    if any(shape_of(end) != shape_of(block.side) for end in ends):
        shapes = ", ".join(str((shape_of(end) or ())[1:]) for end in ends)
        yield Refusal(str(block.convs[0].target), f"the convolutions of its block give unequal shapes ({shapes})")
        return
    yield Site(ends[0], (block.side,))
    for conv, end in zip(block.convs[1:-1], ends[1:-1], strict=True):
        yield Site(end, (_stream(graph, conv),))
    yield Site(block.add, (_stream(graph, block.convs[-1]), block.side))


def _unit_end(graph: GraphModule, conv: Node) -> Node:
    """The batch norm right after the convolution, or the convolution itself."""
    user = only_user(conv)
    return user if user is not None and is_call_of(graph, user, BATCH_NORMS) else conv


def _stream(graph: GraphModule, conv: Node) -> Node:
    """Value that the sign of `conv` reads, before a batch norm that stands there for that sign alone."""
    source = input_of(conv)
    for_sign = is_call_of(graph, source, BATCH_NORMS) and only_user(source) is conv
    inserted = str(source.target).startswith(f"{conv.target}_norm")
    return input_of(source) if for_sign and inserted else source
