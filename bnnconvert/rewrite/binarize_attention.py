"""Make the products inside attention products of signs.

scores   softmax over sign(q) . sign(k), each row with its mean magnitude as its scale, as XNOR-Net has it for windows
both     the keys whose score is at least 0, and of their values' signs the mean (BiBERT's attention)

Attention that is written with torch's functions for it is meant; one written by hand is made of those first.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from bnnconvert.estimators.clip import Clip
from bnnconvert.graph import free_path, is_called_once, module_of, set_module, shape_of
from bnnconvert.layers.attention import Attention, BinaryAttention
from bnnconvert.rewrite.base import RETRAIN, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


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
            elif isinstance(module, Attention) and not isinstance(module, BinaryAttention):
                yield Site(node) if is_called_once(graph, node) else Refusal(path, "it is called more than once")
            elif node.target is F.scaled_dot_product_attention:
                why = _why_float(_given(node))
                yield Site(node) if why is None else Refusal(_path(graph, node), why)

    def apply(self, graph: GraphModule, site: Site) -> None:
        node, module = site.node, module_of(graph, site.node)
        if isinstance(module, Attention):
            made = BinaryAttention(
                module.heads, estimator=Clip(), scale=module.scale, dropout=module.dropout, both=self.both
            )
            set_module(graph, str(node.target), made.train(graph.training))
            return
        given, path = _given(node), _path(graph, node)
        made = BinaryAttention(
            None,
            estimator=Clip(),
            scale=given.get("scale"),
            dropout=given.get("dropout_p", 0.0),
            is_causal=given.get("is_causal", False),
            both=self.both,
        )
        graph.add_submodule(path, made.train(graph.training))
        masks = () if given.get("attn_mask") is None else (given["attn_mask"],)
        with graph.graph.inserting_before(node):
            y = graph.graph.call_module(path, (*(given[name] for name in _ARGUMENTS[:3]), *masks))
        y.meta = dict(node.meta)
        node.replace_all_uses_with(y)
        graph.graph.erase_node(node)


def _given(node: Node) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def _why_float(given: dict[str, Any]) -> str | None:
    if given.get("enable_gqa"):
        return "several queries share a head of keys"
    if any(isinstance(given.get(name), Node) for name in ("dropout_p", "is_causal", "scale")):
        return "its options are computed"
    if any(len(shape_of(given[name]) or ()) < 3 for name in _ARGUMENTS[:3]):
        return "its queries, keys and values are no tensors of (samples, tokens, features)"
    return None


def _path(graph: GraphModule, node: Node) -> str:
    """A free path for the products, at the module whose code has them."""
    scope = next(reversed(node.meta.get("nn_module_stack") or {"": None}), "")
    return free_path(graph, f"{scope}.products" if scope else "products")
