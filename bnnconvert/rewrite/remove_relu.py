"""Take ReLU out of the way of a sign.

    sign(relu(x)) = +1 for every x

`where` says which: `before-sign`, those that only signs read; `stem`, those between the float first layer and the
first signs; `feeding`, all that a sign reads, also through additions, which leaves the one behind the last binary
layer; `everywhere`, all that feed or follow a binary layer, as Bi-Real Net has none in its trunk.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch.fx import GraphModule

from bnnconvert.graph import RELUS, input_of, is_call_of
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.regions import feeds_only_signs, feeds_sign, follows_binary, follows_first, touches_binary
from bnnconvert.values.plan import Plan


class RemoveRelu(Rewrite):
    """Remove ReLUs around signs."""

    name: ClassVar[str] = "remove-relu"
    promise: ClassVar[Promise] = RETRAIN

    def __init__(self, *, where: Literal["before-sign", "stem", "feeding", "everywhere"] = "before-sign") -> None:
        self.where = where

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for node in graph.graph.nodes:
            if not is_call_of(graph, node, RELUS):
                continue
            if (
                (self.where == "before-sign" and feeds_only_signs(graph, node))
                or (self.where == "stem" and follows_first(graph, node, plan) and not follows_binary(graph, node))
                or (self.where == "feeding" and feeds_sign(graph, node))
                or (self.where == "everywhere" and touches_binary(graph, node))
            ):
                yield Site(node)

    def apply(self, graph: GraphModule, site: Site) -> None:
        site.node.replace_all_uses_with(input_of(site.node))
        graph.graph.erase_node(site.node)
