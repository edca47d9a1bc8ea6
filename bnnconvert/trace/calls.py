"""How a call of torch is written into a graph, and how the containers around its tensors are walked."""

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

VALUES = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist", "numpy", "__array__"}
VALUES |= {"__contains__", "equal", "allclose", "is_nonzero", "__format__"}
"""What asks a tensor for its values."""
FACTS = {"size", "dim", "stride", "numel", "nelement", "__len__", "is_floating_point", "is_complex", "is_contiguous"}
FACTS |= {"storage_offset", "get_device", "data_ptr", "element_size", "ndimension", "is_tensor", "__hash__", "type"}
"""What asks a tensor for what does not depend on them."""
_NAMES = "add sub mul truediv floordiv mod pow matmul eq ne lt le gt ge neg pos invert xor abs getitem"
_OPERATORS = {f"__{name}__": getattr(operator, name) for name in _NAMES.split()}
_OPERATORS |= {"__and__": operator.and_, "__or__": operator.or_}


class CaptureError(Exception):
    """The code of one module could not be followed."""

    def __init__(self, path: str, cause: BaseException) -> None:
        super().__init__(f"{path or 'the model'}: {cause}")
        self.path, self.cause = path, cause


def argument_names(module: nn.Module, count: int) -> list[str]:
    """Names of the first arguments of the module's forward."""
    code = getattr(module.forward, "__code__", None)
    known = code.co_varnames[1 : code.co_argcount] if code is not None else ()
    return [known[n] if n < len(known) else f"x{n}" for n in range(count)]


def copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs that a model may write into."""
    return tuple(x.clone() for x in inputs)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a step of its own: those of torch that are not made of others."""
    is_torch_s = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    made_of_others = isinstance(module, nn.Sequential) or type(module).__module__ == "torch.nn.modules.transformer"
    return is_torch_s and not made_of_others


def target_of(func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What to call in the graph, as symbolic tracing would have it: a method by name, an operator, a function."""
    is_method = getattr(Tensor, name, None) is func or type(func).__name__ in (
        "method_descriptor",
        "wrapper_descriptor",
    )
    if not is_method:
        return func, args
    if name in _OPERATORS:
        return _OPERATORS[name], args
    if name.startswith("__r") and name.endswith("__") and f"__{name[3:]}" in _OPERATORS and len(args) == 2:
        return _OPERATORS[f"__{name[3:]}"], args[::-1]
    return name, args


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A container with each element that is none itself replaced; what cannot be in a graph stays as it is."""
    if isinstance(tree, slice):
        return slice(*(map_leaves(part, function) for part in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, dict):
        return {key: map_leaves(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(value, function) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)([map_leaves(value, function) for value in tree])
    return function(tree)
