"""The canonical form: functional calls become modules, shared stateless modules get one copy per call.

Every later stage then sees modules only, each at a path below the user's own module in which the call stands.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from bnnconvert.graph import all_calls, free_path, module_of, path_beside, set_module, stored, tidy, writes, written_by
from bnnconvert.trace.weights import give_weights_layers

Build = Callable[..., nn.Module | None]


def canonicalise(graph: GraphModule) -> tuple[str, ...]:
    """Bring a freshly traced graph into canonical form, in place; paths of layers whose weight was computed. EXACT."""
    _read_what_is_written(graph)
    computed = give_weights_layers(graph)
    for node in list(graph.graph.nodes):
        _functional_to_module(graph, node)
        _plain_add(node)
    _unshare(graph)
    _in_place_off(graph)
    tidy(graph)
    return computed


def _read_what_is_written(graph: GraphModule) -> None:
    """Let what reads a tensor after it was changed in place read what the change gives, as it is written no more."""
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    for node in order:
        if not node.args or not isinstance(node.args[0], Node) or node.target is operator.setitem:
            continue
        if writes(node) or getattr(module_of(graph, node), "inplace", False):
            for reader in [user for user in node.args[0].users if order[user] > order[node]]:
                reader.replace_input_with(node.args[0], node)


def _max_pool(kind: type[nn.MaxPool1d | nn.MaxPool2d]) -> Build:
    def build(
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module | None:
        return None if return_indices else kind(kernel_size, stride or None, padding, dilation, ceil_mode=ceil_mode)

    return build


def _avg_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride or None, padding, ceil_mode, count_include_pad, divisor_override)


def _avg_pool1d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True
) -> nn.Module:
    return nn.AvgPool1d(kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad)


def _mean(dim: Any = None, keepdim: bool = False) -> nn.Module | None:
    axes = {dim} if isinstance(dim, int) else set(dim or ())
    if axes not in ({2, 3}, {-2, -1}, {2, -1}):
        return None
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keepdim else nn.Sequential(pool, nn.Flatten(1))


def _batch_norm(
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    if not all(isinstance(t, torch.Tensor) for t in (running_mean, running_var, weight, bias)):
        return None
    norm = nn.BatchNorm2d(len(running_mean), eps=eps, momentum=momentum)
    norm.running_mean, norm.running_var = running_mean, running_var
    norm.weight, norm.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return norm


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p)


# One row: what the user may have written, the name of the module that stands for it, how to build it.
# Builders take the call's arguments after the tensor; None means that this call has no module form.
_ROWS: list[tuple[tuple[Any, ...], str, Build]] = [
    ((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), "relu", lambda inplace=False: nn.ReLU()),
    ((F.relu6,), "relu6", lambda inplace=False: nn.ReLU6()),
    ((F.leaky_relu,), "leaky_relu", lambda negative_slope=0.01, inplace=False: nn.LeakyReLU(negative_slope)),
    ((F.hardtanh,), "hardtanh", lambda min_val=-1.0, max_val=1.0, inplace=False: nn.Hardtanh(min_val, max_val)),
    ((F.elu,), "elu", lambda alpha=1.0, inplace=False: nn.ELU(alpha)),
    ((F.gelu,), "gelu", lambda approximate="none": nn.GELU(approximate)),
    ((F.silu,), "silu", lambda inplace=False: nn.SiLU()),
    ((F.hardswish,), "hardswish", lambda inplace=False: nn.Hardswish()),
    ((F.sigmoid, torch.sigmoid, "sigmoid"), "sigmoid", lambda: nn.Sigmoid()),
    ((F.tanh, torch.tanh, "tanh"), "tanh", lambda: nn.Tanh()),
    ((F.max_pool2d, torch.max_pool2d), "max_pool", _max_pool(nn.MaxPool2d)),
    ((F.avg_pool2d,), "avg_pool", _avg_pool),
    ((F.max_pool1d, torch.max_pool1d), "max_pool", _max_pool(nn.MaxPool1d)),
    ((F.avg_pool1d,), "avg_pool", _avg_pool1d),
    ((F.adaptive_avg_pool1d,), "avg_pool", lambda output_size: nn.AdaptiveAvgPool1d(output_size)),
    ((F.adaptive_avg_pool2d,), "avg_pool", lambda output_size: nn.AdaptiveAvgPool2d(output_size)),
    ((torch.mean, "mean"), "avg_pool", _mean),
    ((torch.flatten, "flatten"), "flatten", _flatten),
    ((F.batch_norm,), "norm", _batch_norm),
    ((F.dropout,), "dropout", _dropout),
]
_BUILDERS: dict[Any, tuple[str, Build]] = {call: (name, build) for calls, name, build in _ROWS for call in calls}
_ADDS = {torch.add, operator.iadd, "add", "add_"}


def _functional_to_module(graph: GraphModule, node: Node) -> None:
    if node.op not in ("call_function", "call_method"):
        return
    row = _BUILDERS.get(node.target)
    module = _flattening_view(node) if row is None else _build(graph, node, row[1])
    if module is None:
        return
    name = "flatten" if row is None else row[0]
    tensor = node.args[0] if node.args else node.kwargs["input"]
    path = path_beside(graph, node, name)
    module.train(graph.training)
    graph.add_submodule(path, module)
    parts = [f"{path}.{i}" for i in range(len(module))] if isinstance(module, nn.Sequential) else [path]
    with graph.graph.inserting_before(node):
        for part in parts:
            tensor = graph.graph.call_module(part, (tensor,))
            tensor.meta.update(node.meta)
    assert isinstance(tensor, Node)
    node.replace_all_uses_with(tensor)
    graph.graph.erase_node(node)


def _build(graph: GraphModule, node: Node, build: Build) -> nn.Module | None:
    """Module for a call, unless its arguments depend on tensors other than parameters and buffers."""
    args = [_constant(graph, a) for a in node.args[1:]]
    kwargs = {k: _constant(graph, v) for k, v in node.kwargs.items() if k != "input"}
    if any(isinstance(a, Node) for a in (*args, *kwargs.values())):
        return None
    try:
        given = inspect.signature(build).bind(*args, **kwargs)
    except TypeError:  # an argument that the module form does not have
        return None
    return build(*given.args, **given.kwargs)


def _constant(graph: GraphModule, value: Any) -> Any:
    if isinstance(value, Node) and value.op == "get_attr":
        return stored(graph, str(value.target))
    return tuple(value) if isinstance(value, list) else value


def _flattening_view(node: Node) -> nn.Module | None:
    """Flatten for `x.view(n, -1)` and `x.reshape(n, -1)` where n is x.size(0) or x.shape[0]."""
    if node.target not in ("view", "reshape", torch.reshape) or len(node.args) < 2:
        return None
    shape = node.args[1:] if not isinstance(node.args[1], tuple | list) else tuple(node.args[1])
    if len(shape) != 2 or shape[1] != -1 or not isinstance(shape[0], Node):
        return None
    size, x = shape[0], node.args[0]
    by_size = size.target == "size" and size.args == (x, 0)
    inner = size.args[0] if size.target is operator.getitem and size.args[1] == 0 else None
    by_shape = isinstance(inner, Node) and (inner.args in ((x, "shape"), (x,)))
    return nn.Flatten(1) if by_size or by_shape else None


def _plain_add(node: Node) -> None:
    """Write every addition of two tensors as operator.add, but for one into a part of another tensor."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
        return
    is_partial = writes(node) and len(list(written_by(node))) > 1
    if len(node.args) == 2 and not node.kwargs and not is_partial:
        node.op, node.target = "call_function", operator.add


def _unshare(graph: GraphModule) -> None:
    """Give each call of a module without state its own copy; modules with state stay shared."""
    for module, calls in all_calls(graph).items():
        if any(True for _ in (*module.parameters(), *module.buffers())):
            continue
        for call in calls[1:]:
            path = free_path(graph, str(calls[0].target))
            graph.add_submodule(path, copy.deepcopy(module))
            call.target = path


def _in_place_off(graph: GraphModule) -> None:
    """Turn in-place activations into ordinary ones: rewrites may add readers of what they overwrite."""
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if getattr(module, "inplace", False):
            clone = copy.deepcopy(module)
            assert clone is not None
            clone.inplace = False  # type: ignore[assignment]
            set_module(graph, str(node.target), clone)
