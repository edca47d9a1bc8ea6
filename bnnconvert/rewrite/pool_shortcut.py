"""Let a float strided 1x1 shortcut see every pixel: average pooling takes over its stride.

conv1x1(x, stride s)  ->  conv1x1(avg_pool(x, s, stride s), stride 1)
"""

from collections.abc import Iterator
from typing import ClassVar

from torch import nn
from torch.fx import GraphModule

from bnnconvert.graph import input_of, insert_after, is_called_once, module_of, shape_of
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class PoolShortcut(Rewrite):
    """Average pooling before the float 1x1 convolution of a downsampling shortcut (Bi-Real Net)."""

    name: ClassVar[str] = "pool-shortcut"
    promise: ClassVar[Promise] = RETRAIN
    source: ClassVar[str] = "Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for node in graph.graph.nodes:
            layer = plan.layer(str(node.target)) if node.op == "call_module" else None
            if layer is None or not layer.facts.is_shortcut:
                continue
            module = module_of(graph, node)
            if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
                if is_called_once(graph, node) and tuple(module.padding) == (0, 0):
                    yield Site(node)
                else:
                    yield Refusal(layer.facts.path, "it is padded or called more than once")

    def apply(self, graph: GraphModule, site: Site) -> None:
        conv = module_of(graph, site.node)
        assert isinstance(conv, nn.Conv2d)
        source = input_of(site.node)
        stride = (conv.stride[0], conv.stride[1])
        # Odd sizes: ceil_mode gives the size that the strided convolution gave.
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        shape, strided = shape_of(source), shape_of(site.node)
        assert shape is not None
        assert strided is not None
        conv.stride = (1, 1)
        added = insert_after(graph, source, f"{site.node.target}_pool", pool, users=[site.node])
        added.meta["shape"] = (*shape[:2], *strided[2:])
