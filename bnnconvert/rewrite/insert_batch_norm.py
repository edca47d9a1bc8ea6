"""Put a batch norm in front of each sign whose input is not centred.

    sign(x)  ->  sign((x - mu_c) / s_c)

It starts as the identity and takes its statistics from data before the first training step. `before_last` and
`after_last` add one around the last layer, as IR-Net's and BNN's residual networks have it.
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
    is_call_of,
    shape_of,
    skip_back,
)
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class InsertBatchNorm(Rewrite):
    """Batch norm before sign."""

    name: ClassVar[str] = "insert-batch-norm"
    promise: ClassVar[Promise] = RETRAIN

    def __init__(self, *, before_signs: bool = True, before_last: bool = False, after_last: bool = False) -> None:
        self.before_signs, self.before_last, self.after_last = before_signs, before_last, after_last

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        wanted = {n: input_of(n) for n in binary_inputs(graph) if self.before_signs and not _is_centred(graph, n)}
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


def _site(reader: Node, source: Node) -> Iterator[Site | Refusal]:
    shape = shape_of(source)
    if shape is not None and 2 <= len(shape) <= 4:
        yield Site(reader, (source,))
    else:
        yield Refusal(str(reader.target), f"no batch norm fits a tensor of shape {shape}")


def _is_centred(graph: GraphModule, node: Node) -> bool:
    """Whether a batch norm, or a symmetric bounded activation, feeds the sign of `node`."""
    source = skip_back(graph, input_of(node), PASS_THROUGH)
    return is_call_of(graph, source, (*BATCH_NORMS, nn.Hardtanh, nn.Tanh))
