"""Multi-head attention as its steps, so that its projections are linear layers like any other. EXACT.

self-attention      in_proj, split, attend, out_proj
otherwise           q_proj, k_proj, v_proj, attend, out_proj
"""

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bnnconvert.graph import is_called_once, module_of, shape_of
from bnnconvert.layers.attention import Attention, SplitInThree

_ARGUMENTS: tuple[str, ...] = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
_ARGUMENTS += ("average_attn_weights", "is_causal")


def expand_attention(graph: GraphModule) -> int:
    """Write attention modules as their steps where that is possible; how many."""
    found = [(n, m) for n in graph.graph.nodes if isinstance(m := module_of(graph, n), nn.MultiheadAttention)]
    return sum(_expand(graph, node, module) for node, module in found)


def why_whole(graph: GraphModule, node: Node, module: nn.MultiheadAttention) -> str | None:
    """What keeps an attention module from being written as its steps; None where nothing does."""
    given = _given(node)
    if not is_called_once(graph, node):
        return "it is called more than once"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys of its own"
    if given.get("key_padding_mask") is not None or given.get("is_causal"):
        return "it takes a padding mask"
    mask = given.get("attn_mask")
    if mask is not None and not (isinstance(mask, Node) and len(shape_of(mask) or ()) == 2):
        return "its mask differs from head to head"
    if any(len(shape_of(given[name]) or ()) != 3 for name in _ARGUMENTS[:3]):
        return "its input has no samples axis"
    if any(user.target is not operator.getitem or (user.args[1] != 0 and user.users) for user in node.users):
        return "its attention weights are read"
    return None


def _given(node: Node) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def _expand(graph: GraphModule, node: Node, module: nn.MultiheadAttention) -> bool:
    if why_whole(graph, node, module) is not None:
        return False
    given, path = _given(node), str(node.target)
    holder = nn.Module()
    owner, _, leaf = path.rpartition(".")
    graph.get_submodule(owner).add_module(leaf, holder)

    def call(name: str, made: nn.Module, *inputs: Node) -> Node:
        holder.add_module(name, made.train(module.training))
        step = graph.graph.call_module(f"{path}.{name}", inputs)
        step.meta.update(node.meta)
        return step

    with graph.graph.inserting_before(node):
        tokens = [given[name] for name in _ARGUMENTS[:3]]
        if not module.batch_first:
            turned = {x: graph.graph.call_method("transpose", (x, 0, 1)) for x in tokens}
            tokens = [turned[x] for x in tokens]
        if len(set(tokens)) == 1 and module.in_proj_weight is not None:
            joined = call("in_proj", linear_of(module.in_proj_weight, module.in_proj_bias), tokens[0])
            parts = call("split", SplitInThree(), joined)
            projected = [graph.graph.call_function(operator.getitem, (parts, i)) for i in range(3)]
        else:
            layers = zip("qkv", tokens, _projections(module), strict=True)
            projected = [call(f"{name}_proj", layer, x) for name, x, layer in layers]
        masks = [] if given.get("attn_mask") is None else [_additive(graph, given["attn_mask"])]
        y = call("attend", Attention(module.num_heads, dropout=module.dropout), *projected, *masks)
        y = call("out_proj", linear_of(module.out_proj.weight, module.out_proj.bias), y)
        if not module.batch_first:
            y = graph.graph.call_method("transpose", (y, 0, 1))
    for user in list(node.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(y)
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)
    return True


def _additive(graph: GraphModule, mask: Node) -> Node:
    """A mask as it is added; a mask of truths says in attention where not to look, in the product where to."""
    return graph.graph.call_method("logical_not", (mask,)) if mask.meta["dtype"] is torch.bool else mask


def _projections(module: nn.MultiheadAttention) -> list[nn.Linear]:
    biases: Any = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    weights: Any = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    return [linear_of(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer over these parameters."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach())
    if bias is not None:
        made.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach())
    return made
