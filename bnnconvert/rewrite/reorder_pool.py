"""Move a max-pool in front of the batch norm and activation that precede it.

    pool(act(bn(conv(x))))  =  act(bn(pool(conv(x))))        where act(bn(.)) is non-decreasing

A pool behind a sign sees nearly only +1; behind the convolution it sees real values. Batch norm decreases in the
channels with gamma < 0; there the filter is negated first, which leaves the batch norm's output as it was:

    gamma (z - mu) / s + b  =  (-gamma) (-z - (-mu)) / s + b
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import PASS_THROUGH, RELUS, input_of, is_call_of, is_called_once, module_of, only_user
from bnnconvert.rewrite.base import EXACT, Promise, Refusal, Rewrite, Site
from bnnconvert.values.plan import Plan


class ReorderPool(Rewrite):
    """Pool before batch norm, sign-aware, next to binary layers."""

    name: ClassVar[str] = "reorder-pool"
    promise: ClassVar[Promise] = EXACT
    source: ClassVar[str] = "Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279"

    def find(self, graph: GraphModule, plan: Plan) -> Iterator[Site | Refusal]:
        for pool in list(graph.graph.nodes):
            if not is_call_of(graph, pool, nn.MaxPool2d):
                continue
            chain = _chain(graph, pool)
            if not chain:
                continue
            conv = input_of(chain[-1])
            if not (_is_binary(plan, conv) or any(_is_binary(plan, n) for n in _readers(graph, pool))):
                continue
            norm = next((n for n in chain if is_call_of(graph, n, nn.BatchNorm2d)), None)
            if norm is None:
                yield Site(pool, (chain[-1],))
            elif chain[-1] is not norm or not is_call_of(graph, conv, nn.Conv2d) or only_user(conv) is None:
                yield Refusal(str(pool.target), "its batch norm does not directly follow a convolution of its own")
            elif not (is_called_once(graph, conv) and is_called_once(graph, norm)):
                yield Refusal(str(pool.target), "the convolution or batch norm before it is called more than once")
            elif not isinstance(module_of(graph, norm).weight, torch.Tensor):  # type: ignore[union-attr]
                yield Site(pool, (norm,))
            else:
                yield Site(pool, (norm, conv))

    def apply(self, graph: GraphModule, site: Site) -> None:
        pool, (first, *conv) = site.node, site.others
        if conv:
            _make_increasing(module_of(graph, conv[0]), module_of(graph, first))
        source, before_pool = input_of(first), input_of(pool)
        pool.replace_all_uses_with(before_pool, delete_user_cb=lambda user: user is not pool)
        first.replace_input_with(source, pool)
        pool.replace_input_with(before_pool, source)


def _chain(graph: GraphModule, pool: Node) -> list[Node]:
    """Single-reader, element-wise, non-decreasing nodes before the pool, the nearest first; batch norm ends it."""
    chain: list[Node] = []
    node = input_of(pool)
    while only_user(node) is not None:
        if is_call_of(graph, node, nn.BatchNorm2d):
            return [*chain, node]
        if not _is_monotone(module_of(graph, node)):
            break
        chain.append(node)
        node = input_of(node)
    return chain


def _is_monotone(module: nn.Module | None) -> bool:
    if isinstance(module, nn.LeakyReLU):
        return module.negative_slope >= 0
    if isinstance(module, nn.PReLU):
        return bool((module.weight >= 0).all())
    return isinstance(module, (*RELUS, nn.Hardtanh, *PASS_THROUGH))


def _readers(graph: GraphModule, node: Node) -> Iterator[Node]:
    """Nodes that read `node`, looking through element-wise and shape-only modules."""
    for user in node.users:
        if is_call_of(graph, user, (*RELUS, nn.Hardtanh, nn.BatchNorm2d, nn.Flatten, *PASS_THROUGH)):
            yield from _readers(graph, user)
        else:
            yield user


def _is_binary(plan: Plan, node: Node) -> bool:
    layer = plan.layer(str(node.target)) if node.op == "call_module" else None
    return layer is not None and layer.decision == "binary"


def _make_increasing(conv: nn.Module | None, norm: nn.Module | None) -> None:
    """Negate filters so that gamma >= 0, keeping the batch norm's output."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    flip = norm.weight < 0
    with torch.no_grad():
        for values in (conv.weight, conv.bias, norm.weight, norm.running_mean):
            if values is not None:
                values[flip] = -values[flip]
