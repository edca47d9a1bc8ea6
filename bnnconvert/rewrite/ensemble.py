"""Several copies of the whole network, which vote, as BENN has them.

    net(x)  ->  vote(net_1(x), ..., net_K(x))

The members are alike here; training makes them differ. Put this last.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.fx import Graph, GraphModule, Node

from bnnconvert.graph import MEMBER, VOTE, is_call_of, shape_of
from bnnconvert.layers.vote import Vote
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class Ensemble(Rewrite):
    """K members and their vote."""

    name: ClassVar[str] = "ensemble"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Zhu et al., Binary Ensemble Neural Network, CVPR 2019, arXiv:1806.07550"

    def __init__(self, *, members: Annotated[int, Field(ge=2)] = 3, vote: Literal["soft", "hard"] = "soft") -> None:
        self.members, self.vote = members, vote

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        logits = output.args[0]
        if is_call_of(graph, logits, Vote):
            return
        if isinstance(logits, Node) and len(shape_of(logits) or ()) == 2:
            yield Site(output, (logits,))
        else:
            yield Refusal(str(output.target), "the model gives no single tensor of logits, and members vote on those")

    def apply(self, graph: GraphModule, site: Site) -> None:
        nodes = [node for node in graph.graph.nodes if node.op != "output"]
        _move_into_member(graph)
        for number in range(2, self.members + 1):
            graph.add_module(f"{MEMBER}{number}", copy.deepcopy(graph.get_submodule(f"{MEMBER}1")))
        graph.add_module(VOTE, Vote(self.members, kind=self.vote).train(graph.training))
        made, inputs, logits = Graph(), {}, []
        for node in nodes:
            if node.op == "placeholder":
                inputs[node] = made.node_copy(node)
        for number in range(1, self.members + 1):
            copies: dict[Node, Node] = dict(inputs)
            for node in nodes:
                if node.op == "placeholder":
                    continue
                copies[node] = made.node_copy(node, copies.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    copies[node].target = f"{MEMBER}{number}.{node.target}"
            logits.append(copies[site.others[0]])
        voted = made.call_module(VOTE, tuple(logits))
        voted.meta = {"shape": shape_of(logits[0])}
        made.output(voted)
        graph.graph = made

    def replan(self, graph: GraphModule, plan: Plan) -> Plan:
        if not isinstance(getattr(graph, VOTE, None), Vote):
            return plan
        layers = tuple(
            replace(
                layer,
                facts=replace(layer.facts, path=f"{MEMBER}{number}.{layer.facts.path}"),
                is_copy=layer.is_copy or number > 1,
            )
            for number in range(1, self.members + 1)
            for layer in plan.layers
        )
        return replace(plan, layers=layers)


def _move_into_member(graph: GraphModule) -> None:
    """Put all that the graph holds below the path of its first member."""
    member = nn.Module()
    member.train(graph.training)
    for name, child in list(graph.named_children()):
        delattr(graph, name)
        member.add_module(name, child)
    for name, parameter in list(graph.named_parameters(recurse=False)):
        delattr(graph, name)
        member.register_parameter(name, parameter)
    for name, buffer in list(graph.named_buffers(recurse=False)):
        delattr(graph, name)
        member.register_buffer(name, buffer)
    graph.add_module(f"{MEMBER}1", member)
