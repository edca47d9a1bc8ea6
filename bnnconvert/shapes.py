"""Shapes on every node of a graph: by rule where a module has one, else by running it on tensors without values."""

import copy
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from bnnconvert.graph import ACTIVATIONS, BATCH_NORMS, PASS_THROUGH, evaluation
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.operators import out_size

Shape = tuple[int, ...]


def propagate_shapes(graph: GraphModule, *inputs: Tensor) -> None:
    """Note every node's shape in evaluation mode, on tensors without values unless a module asks for values."""
    with evaluation(graph), torch.no_grad():
        if not (_propagate_on_meta(graph, inputs) or _propagate_without_values(graph, inputs)):
            _Shapes(graph).run(*inputs)


def shape_by_rule(module: nn.Module | None, x: object) -> Shape | None:
    """Shape of a module's output where its first input and its settings say it; None where they do not."""
    if module is None or not isinstance(x, Tensor) or type(module) not in _RULES:
        return None
    return _RULES[type(module)](module, tuple(x.shape))


class _Shapes(Interpreter):
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        n.meta["dtype"] = value.dtype if isinstance(value, Tensor) else None
        return value


class _Rules(_Shapes):
    """On tensors without values, so that a rule gives what a run would."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        shape = shape_by_rule(module, args[0]) if args and not kwargs else None
        return self.run_module(module, args, kwargs) if shape is None else args[0].new_empty(shape)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rule = _FUNCTIONS.get(target)
        shape = None if rule is None or kwargs else rule(*args)
        return super().call_function(target, args, kwargs) if shape is None else _first(args).new_empty(shape)

    def run_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Output of a module without a rule."""
        return module(*args, **kwargs)


class _OnMeta(_Rules):
    """Every parameter on the meta device as well: quicker than fake tensors, and stricter."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self._tensors = {id(t): t.to("meta") for t in (*graph.parameters(), *graph.buffers())}

    def fetch_attr(self, target: str) -> Any:
        found = super().fetch_attr(target)
        return found.to("meta") if isinstance(found, Tensor) else found

    def run_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return copy.deepcopy(module, dict(self._tensors))(*args, **kwargs)


def _propagate_on_meta(graph: GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    if graph.meta.get("opaque"):
        return False
    try:
        _OnMeta(graph).run(*(x.to("meta") for x in inputs))
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _propagate_without_values(graph: GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    if graph.meta.get("opaque"):  # the user's code, which may keep what it is given
        return False
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake:
            _Rules(graph).run(*map(fake.from_tensor, inputs))
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
        return False
    return True


def _same(module: nn.Module, x: Shape) -> Shape:
    return x


def _convolution(module: Any, x: Shape) -> Shape | None:
    """N, O and what the windows leave; None for padding by name."""
    outputs, _, *kernel = module.weight.shape
    if isinstance(module.padding, str) or len(x) != 2 + len(kernel):
        return None
    if isinstance(module, BinaryConv2d):
        outputs *= module.weight_binarizer.copies
    return (x[0], outputs, *_windows(x[2:], kernel, module.stride, module.padding, module.dilation))


def _pool(module: Any, x: Shape) -> Shape | None:
    """None where a window may hang over the end, or places are asked for."""
    rank = 1 if isinstance(module, nn.MaxPool1d | nn.AvgPool1d) else 2
    if module.ceil_mode or getattr(module, "return_indices", False) or len(x) != 2 + rank:
        return None
    sizes = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    return (*x[:2], *_windows(x[2:], *(_each(size, rank) for size in sizes)))


def _each(size: Any, rank: int) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple | list) else (size,) * rank


def _windows(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    """Positions of a window along each axis."""
    return tuple(itertools.starmap(out_size, zip(sizes, kernel, stride, padding, dilation, strict=True)))


def _linear(module: Any, x: Shape) -> Shape:
    return (*x[:-1], module.weight.shape[0])


def _pooled(module: Any, x: Shape) -> Shape:
    """Adaptive pools over the last two axes; None in a size keeps it."""
    size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
    return (*x[:-2], *(old if new is None else new for old, new in zip(x[-2:], size, strict=True)))


def _broadcast(*operands: Any) -> Shape | None:
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if len({t.dtype for t in tensors}) != 1 or not all(isinstance(x, Tensor | int | float) for x in operands):
        return None
    return tuple(np.broadcast_shapes(*(tuple(t.shape) for t in tensors)))


def _joined(tensors: Any, axis: int = 0) -> Shape | None:
    if not all(isinstance(t, Tensor) for t in tensors) or len({t.dtype for t in tensors}) != 1:
        return None
    shape = list(tensors[0].shape)
    shape[axis] = sum(t.shape[axis] for t in tensors)
    return tuple(shape)


def _attended(q: Any, k: Any, v: Any, *others: Any) -> Shape:
    return (*q.shape[:-1], v.shape[-1])


def _first(args: Any) -> Tensor:
    """First tensor among arguments."""
    return next(t for t in pytree.tree_leaves(args) if isinstance(t, Tensor))


_FUNCTIONS: dict[Any, Callable[..., Shape | None]] = {
    **dict.fromkeys((operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.mul), _broadcast),
    **dict.fromkeys((torch.cat, torch.concat), _joined),
    torch.nn.functional.scaled_dot_product_attention: _attended,
}
_RULES: dict[type[nn.Module], Callable[[Any, Shape], Shape | None]] = {
    **dict.fromkeys((*ACTIVATIONS, *BATCH_NORMS, *PASS_THROUGH), _same),
    **dict.fromkeys((nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.ELU, nn.GELU, nn.SiLU, nn.Mish), _same),
    **dict.fromkeys((nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softmax), _same),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, BinaryConv2d), _convolution),
    **dict.fromkeys((nn.Linear, BinaryLinear), _linear),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d), _pool),
    nn.AdaptiveAvgPool2d: _pooled,
}
