"""Make the products inside attention products of signs.

scores   softmax over sign(q) . sign(k), each row with its mean magnitude as its scale, as XNOR-Net has it for windows
both     the keys whose score is at least 0, and of their values' signs the mean (BiBERT's attention)
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from bnnconvert.estimators.clip import Clip
from bnnconvert.graph import is_called_once, module_of, set_module
from bnnconvert.layers.attention import Attention, BinaryAttention
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class BinarizeAttention(Rewrite):
    """Products of attention to products of signs."""

    name: ClassVar[str] = "binarize-attention"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Qin et al., BiBERT, ICLR 2022, arXiv:2203.06390"

    def __init__(self, *, products: Literal["scores", "both"] = "scores") -> None:
        self.both = products == "both"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for node in graph.graph.nodes:
            module, path = module_of(graph, node), str(node.target)
            if isinstance(module, nn.MultiheadAttention):
                layer = plan.layer(path)
                yield Refusal(path, "it is whole" if layer is None else layer.reason)
            elif type(module) is Attention:
                yield Site(node) if is_called_once(graph, node) else Refusal(path, "it is called more than once")
            elif node.target is F.scaled_dot_product_attention:
                yield Refusal(node.name, "several queries share a head of keys, or its options are computed")

    def apply(self, graph: GraphModule, site: Site) -> None:
        path = str(site.node.target)
        attention = module_of(graph, site.node)
        assert isinstance(attention, Attention)
        made = BinaryAttention(attention, estimator=Clip(), both=self.both)
        set_module(graph, path, made.train(graph.training))
