"""Gate the shortcut around each binary convolution with a learned factor per channel, as BBG has it.

    U(x) + s  ->  U(x) + g_c s        g = 1 at the start

U is a binary convolution with the batch norm that follows it, s the shortcut that is added to it.
"""

from collections.abc import Iterator
from typing import ClassVar

from torch.fx import GraphModule, Node

from bnnconvert.graph import (
    BATCH_NORMS,
    PASS_THROUGH,
    insert_after,
    is_add,
    is_call_of,
    only_user,
    shape_of,
    skip_back,
)
from bnnconvert.layers.channel_scale import ChannelScale
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.rewrite.base import EXACT, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class GateShortcut(Rewrite):
    """Learned factor per channel on every shortcut around a binary convolution."""

    name: ClassVar[str] = "gate-shortcut"
    promise: ClassVar[Promise] = EXACT
    source: ClassVar[str] = "Shen et al., Balanced Binary Neural Networks with Gated Residual, 2019, arXiv:1909.12117"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for add in graph.graph.nodes:
            if not is_add(add) or len(add.all_input_nodes) != 2:
                continue
            convs = {part: conv for part in add.all_input_nodes if (conv := _conv_of(graph, part)) is not None}
            # A binary projection is the shortcut, not what the shortcut leads around.
            mains = [part for part, conv in convs.items() if not _is_shortcut(plan, conv)]
            if len(mains) == 2:
                paths = " and ".join(str(conv.target) for conv in convs.values())
                yield Refusal(paths, "both sides of their addition are binary convolutions, so neither is a shortcut")
            elif mains:
                (side,) = (part for part in add.all_input_nodes if part is not mains[0])
                if not is_call_of(graph, side, ChannelScale):
                    yield Site(add, (side, convs[mains[0]]))

    def apply(self, graph: GraphModule, site: Site) -> None:
        side, conv = site.others
        shape = shape_of(side)
        assert shape is not None
        gate = ChannelScale(shape[1]).train(graph.training)
        insert_after(graph, side, f"{conv.target}_gate", gate, users=[site.node])


def _conv_of(graph: GraphModule, part: Node) -> Node | None:
    """The binary convolution whose output, behind a batch norm, is this part of an addition and nothing else's."""
    conv = skip_back(graph, part, (*BATCH_NORMS, *PASS_THROUGH))
    return conv if is_call_of(graph, conv, BinaryConv2d) and only_user(conv) is not None else None


def _is_shortcut(plan: Plan, conv: Node) -> bool:
    layer = plan.layer(str(conv.target))
    return layer is not None and layer.facts.is_shortcut
