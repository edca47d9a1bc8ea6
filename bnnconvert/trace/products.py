"""Attention as one module, however it is written: by torch's function, or by two products and a softmax. EXACT.

y = softmax(q k^T scale + mask) v,   scale a number and mask what is added, or what `masked_fill` lets through
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from bnnconvert.graph import module_of, only_user, path_beside, shape_of
from bnnconvert.layers.attention import Attention

_PRODUCTS = (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__")
_SOFTMAX = (F.softmax, torch.softmax, "softmax")
_TIMES = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_OVER = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
_ARITHMETIC: dict[Any, Callable[..., float]] = {
    f: f for f in (math.sqrt, operator.pow, operator.mul, operator.truediv, operator.floordiv, int, float)
}
_FILLS = ("masked_fill", "masked_fill_", torch.masked_fill)
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def gather_attention(graph: GraphModule) -> int:
    """Make modules of such attention; how much there is."""
    found = [(node, parts) for node in graph.graph.nodes if (parts := _parts(graph, node)) is not None]
    for node, parts in found:
        _put(graph, node, parts)
    return len(found)


@dataclass(frozen=True)
class _Parts:
    query: Node
    key: Node
    value: Node
    mask: Node | None = None
    lets_through: bool = True
    """Whether a bool mask says where to look; otherwise where not to."""
    keys_in_columns: bool = False
    dropout: float = 0.0
    scale: float | None = None
    is_causal: bool = False


def _parts(graph: GraphModule, node: Node) -> _Parts | None:
    if node.target is F.scaled_dot_product_attention:
        return _of_function(node)
    return _by_hand(graph, node) if _is_softmax(graph, node) else None


def _of_function(node: Node) -> _Parts | None:
    given: dict[str, Any] = dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    options = {name: given.get(name) for name in _ARGUMENTS[4:]}
    tensors = [given[name] for name in _ARGUMENTS[:3]]
    if options["enable_gqa"] or options["dropout_p"] or any(isinstance(option, Node) for option in options.values()):
        return None  # a dropout here would be one in evaluation, too
    if any(len(shape_of(t) or ()) < 3 for t in tensors):
        return None
    return _Parts(
        query=tensors[0],
        key=tensors[1],
        value=tensors[2],
        mask=given.get("attn_mask"),
        scale=options["scale"],
        is_causal=bool(options["is_causal"]),
    )


def _is_softmax(graph: GraphModule, node: Node) -> bool:
    """Whether a node is a softmax over the last axis."""
    module, rank = module_of(graph, node), len(shape_of(node) or ())
    if module is not None:
        return isinstance(module, nn.Softmax) and module.dim in (-1, rank - 1)
    if node.target not in _SOFTMAX:
        return False
    given = dict(zip(("input", "dim", "_stacklevel", "dtype"), node.args, strict=False)) | dict(node.kwargs)
    return given.get("dim") in (-1, rank - 1) and given.get("dtype") in (None, torch.float32)


def _by_hand(graph: GraphModule, softmax: Node) -> _Parts | None:
    dropout, weights = 0.0, softmax
    user = only_user(weights)
    if user is not None and isinstance(drop := module_of(graph, user), nn.Dropout):
        dropout, weights, user = drop.p, user, only_user(user)
    if user is None or not _is_product(user) or user.args[0] is not weights:
        return None
    value = user.args[1]
    scores = _scores(softmax.all_input_nodes[0])
    if scores is None or not isinstance(value, Node):
        return None
    product, scale, mask, lets_through = scores
    query, key = product.args
    assert isinstance(query, Node)
    assert isinstance(key, Node)
    if mask is not None and not _broadcasts(mask, product):
        return None
    turned = _turned(key)
    return _Parts(
        query,
        key if turned is None else turned,
        value,
        mask=mask,
        lets_through=lets_through,
        keys_in_columns=turned is None,
        dropout=dropout,
        scale=scale,
    )


def _is_product(node: Node) -> bool:
    """Whether a node multiplies two activations of one rank, head by head."""
    if node.target not in _PRODUCTS or len(node.args) != 2 or not all(isinstance(a, Node) for a in node.args):
        return False
    left, right = (shape_of(a) or () for a in node.all_input_nodes) if len(node.all_input_nodes) == 2 else ((), ())
    return len(left) >= 3 and left[:-2] == right[:-2]


def _scores(node: Node) -> tuple[Node, float, Node | None, bool] | None:
    """The product behind the input of a softmax, its factor, the mask, and what a mask of truths says."""
    if only_user(node) is None:
        return None
    inputs = node.all_input_nodes
    if node.target is operator.add and len(inputs) == 2:
        pairs, kind, lets_through = [inputs, inputs[::-1]], torch.float32, True
    elif node.target in _FILLS and len(inputs) == 2 and node.args[2:] == (-math.inf,):
        pairs, kind, lets_through = [inputs], torch.bool, False
    else:
        found = _scaled(node)
        return None if found is None else (*found, None, True)
    for x, mask in pairs:
        found = _scaled(x)
        if found is not None and mask.meta.get("dtype") is kind:
            return *found, mask, lets_through
    return None


def _scaled(node: Node) -> tuple[Node, float] | None:
    """The product that is multiplied by numbers, and the factor, where nothing else reads what lies between."""
    factor = 1.0
    while only_user(node) is not None:
        if _is_product(node):
            return node, factor
        if node.target not in (*_TIMES, *_OVER) or len(node.args) != 2:
            return None
        x, number = node.args[0], _number(node.args[1])
        if number is None or not isinstance(x, Node):
            return None
        factor = factor * number if node.target in _TIMES else factor / number
        node = x
    return None


def _number(value: Any) -> float | None:
    """A number, or what the code computes from sizes of other axes than the samples'."""
    if isinstance(value, int | float) or not isinstance(value, Node):
        return value if isinstance(value, int | float) else None
    if value.target == "size" and len(value.args) == 2:
        return _size(value.args[0], value.args[1])
    if value.target is operator.getitem:
        sizes, axis = value.args
        is_shape = isinstance(sizes, Node) and (sizes.target == "size" or sizes.args[1:] == ("shape",))
        return _size(sizes.args[0], axis) if is_shape else None  # type: ignore[union-attr]
    if value.op != "call_function" or value.target not in _ARITHMETIC:
        return None
    numbers = [_number(a) for a in value.args]
    return None if None in numbers else float(_ARITHMETIC[value.target](*numbers))


def _size(x: Any, axis: Any) -> int | None:
    shape = shape_of(x) if isinstance(x, Node) else None
    if shape is None or not isinstance(axis, int) or axis % len(shape) == 0:
        return None
    return shape[axis]


def _broadcasts(mask: Node, scores: Node) -> bool:
    ours, whole = shape_of(mask) or (), shape_of(scores) or ()
    return 2 <= len(ours) <= len(whole) and all(m in (1, s) for m, s in zip(ours[::-1], whole[::-1], strict=False))


def _turned(key: Node) -> Node | None:
    """The keys of which these are the transpose, where one can see it."""
    rank = len(shape_of(key) or ())
    axes = {a % rank for a in key.args[1:] if isinstance(a, int)} if rank else set()
    if key.target is getattr and key.args[1:] == ("mT",):
        return key.all_input_nodes[0]
    if key.target in ("transpose", torch.transpose, "swapaxes") and axes == {rank - 1, rank - 2}:
        return key.all_input_nodes[0]
    return None


def _put(graph: GraphModule, node: Node, parts: _Parts) -> None:
    last = node
    if node.target is not F.scaled_dot_product_attention:
        while not _is_product(last):  # over the dropout, if there is one
            last = next(iter(last.users))
    path = path_beside(graph, last, "attend")
    made = Attention(None, scale=parts.scale, dropout=parts.dropout, is_causal=parts.is_causal)
    graph.add_submodule(path, made.train(graph.training))
    key, mask = parts.key, parts.mask
    with graph.graph.inserting_before(last):
        if parts.keys_in_columns:
            key = graph.graph.call_method("transpose", (key, -2, -1))
        if mask is not None and not parts.lets_through:
            mask = graph.graph.call_method("logical_not", (mask,))
        y = graph.graph.call_module(path, (parts.query, key, parts.value, *(() if mask is None else (mask,))))
    y.meta = dict(last.meta)
    last.replace_all_uses_with(y)
    graph.graph.erase_node(last)
