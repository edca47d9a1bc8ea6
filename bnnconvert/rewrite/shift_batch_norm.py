"""Replace the batch norms around binary layers by shift-based ones, as BNN has them.

gamma (x - m) / s + beta  ->  AP2(gamma) AP2(1 / s) (x - m) + beta        AP2 the nearest power of two
"""

from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule

from bnnconvert.graph import BATCH_NORMS, is_called_once, module_of, set_module
from bnnconvert.layers.shift_batch_norm import ShiftBatchNorm1d, ShiftBatchNorm2d
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.rewrite.regions import touches_binary
from bnnconvert.values.plan import Plan


class ShiftBatchNorm(Rewrite):
    """Batch norm with powers of two, wherever one feeds or follows a binary layer."""

    name: ClassVar[str] = "shift-batch-norm"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for node in graph.graph.nodes:
            norm = module_of(graph, node)
            is_plain = isinstance(norm, BATCH_NORMS) and not isinstance(norm, ShiftBatchNorm1d | ShiftBatchNorm2d)
            if not is_plain or not touches_binary(graph, node):
                continue
            if not is_called_once(graph, node):
                yield Refusal(str(node.target), "it is called more than once")
            elif norm.running_mean is None:  # type: ignore[union-attr]
                yield Refusal(str(node.target), "it keeps no running statistics")
            else:
                yield Site(node)

    def apply(self, graph: GraphModule, site: Site) -> None:
        norm = module_of(graph, site.node)
        assert isinstance(norm, BATCH_NORMS)
        kind = ShiftBatchNorm2d if isinstance(norm, nn.BatchNorm2d) else ShiftBatchNorm1d
        set_module(graph, str(site.node.target), kind.from_float(norm))
