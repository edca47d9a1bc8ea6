"""Put a batch norm in front of each sign whose input is not centred.

    sign(x)  ->  sign((x - mu_c) / s_c)

It starts as the identity and takes its statistics from data before the first training step. `after_layers` gives one
to each binary layer that has none, which a hardtanh needs as much as a sign; `before_last` and `after_last` add one
around the last layer, as IR-Net's and BNN's residual networks have it.
"""

from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import (
    BATCH_NORMS,
    PASS_THROUGH,
    binary_inputs,
    input_of,
    insert_after,
    is_add,
    is_call_of,
    only_user,
    shape_of,
    skip_back,
)
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan

_MAX_DEPTH = 6
_KEEP_BOTH_SIGNS = (*PASS_THROUGH, nn.Hardtanh, nn.Tanh, nn.PReLU, nn.LeakyReLU, RPReLU, Maxout)


class InsertBatchNorm(Rewrite):
    """Batch norm before sign."""

    name: ClassVar[str] = "insert-batch-norm"
    promise: ClassVar[Promise] = RETRAIN

    def __init__(
        self,
        *,
        before_signs: bool = True,
        after_layers: bool = False,
        before_last: bool = False,
        after_last: bool = False,
    ) -> None:
        self.before_signs, self.after_layers = before_signs, after_layers
        self.before_last, self.after_last = before_last, after_last

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        bare = [end for n in binary_inputs(graph) if self.after_layers and (end := _bare_end(graph, n, plan))]
        if bare:  # what comes after them is centred by them, so the signs are looked at again afterwards
            for end in bare:
                yield from _site(end, end)
            return
        wanted = {
            n: input_of(n) for n in binary_inputs(graph) if self.before_signs and not _is_centred(graph, input_of(n))
        }
        for node in graph.graph.nodes:
            layer = plan.layer(str(node.target)) if node.op == "call_module" else None
            if layer is None or not layer.facts.is_last:
                continue
            if self.before_last and not is_call_of(graph, input_of(node), BATCH_NORMS):
                wanted[node] = input_of(node)
            if self.after_last and not any(is_call_of(graph, user, BATCH_NORMS) for user in node.users):
                yield from _site(node, node)
        for reader, source in wanted.items():
            yield from _site(reader, source)

    def apply(self, graph: GraphModule, site: Site) -> None:
        reader, (source,) = site.node, site.others
        shape = shape_of(source)
        assert shape is not None
        norm = nn.BatchNorm1d(shape[1]) if len(shape) < 4 else nn.BatchNorm2d(shape[1])
        after = reader is source
        path = f"{reader.target}_{'output_norm' if after else 'norm'}"
        insert_after(graph, source, path, norm.train(graph.training), users=None if after else [reader])


def _bare_end(graph: GraphModule, node: Node, plan: Plan) -> Node | None:
    """Last node of a binary layer and the max-pool behind it, if no batch norm follows; the last layer is not meant."""
    layer = plan.layer(str(node.target))
    if layer is None or layer.facts.is_last:
        return None
    end = node
    while (user := only_user(end)) is not None and is_call_of(graph, user, nn.MaxPool2d):
        end = user
    return None if any(is_call_of(graph, user, BATCH_NORMS) for user in end.users) else end


def _site(reader: Node, source: Node) -> Iterator[Site | Refusal]:
    shape = shape_of(source)
    if shape is not None and 2 <= len(shape) <= 4:
        yield Site(reader, (source,))
    else:
        yield Refusal(str(reader.target), f"no batch norm fits a tensor of shape {shape}")


def _is_centred(graph: GraphModule, node: Node, *, depth: int = 0) -> bool:
    """Whether the value has both signs in every channel: a batch norm's, or a sum of such.

    A residual stream is a sum of a sum and so on; a stream of many blocks is followed back a few blocks and no more.
    """
    source = skip_back(graph, node, _KEEP_BOTH_SIGNS)
    if is_add(source) and depth < _MAX_DEPTH:
        return all(_is_centred(graph, part, depth=depth + 1) for part in source.all_input_nodes)
    return is_add(source) or is_call_of(graph, source, BATCH_NORMS)
