"""The second way to a graph: the model's own code runs once, on tensors without values, and every call is written down.

Python sees real tensors with real shapes, so whatever code decides by a shape, a type or an argument simply happens;
the number of samples alone stays a symbol, so that the graph holds for any. What code asks of a tensor's values has no
answer and is where this way ends.
"""

import copy
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from traceback import FrameSummary
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bnnconvert.trace.blame import is_user_code, place_of
from bnnconvert.trace.calls import FACTS, VALUES, CaptureError, argument_names, copies, is_leaf, map_leaves, target_of
from bnnconvert.trace.sizes import Sizes


class ValueAskedError(RuntimeError):
    """Code asked for the value of a tensor that depends on the input."""


Calls = dict[str, list[Any]]
"""Outputs of modules by their paths, call by call."""


def capture(
    module: nn.Module, inputs: tuple[Tensor, ...], concrete: dict[str, Any], *, opaque: Calls | None = None
) -> GraphModule:
    """Graph of what `module` does with inputs of these shapes, and any number of samples.

    Modules that are `opaque` are not looked into: they give what they gave before.

    Raises: CaptureError naming the innermost module whose code cannot be followed.
    """
    return _Capture(module, opaque or {}).run(inputs, concrete)


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...], concrete: dict[str, Any], paths: Iterable[str]) -> Calls:
    """What the modules at `paths` give when the whole one runs, call by call."""
    found: Calls = {path: [] for path in paths}
    with ExitStack() as stack, torch.no_grad():
        for path, outputs in found.items():
            handle = module.get_submodule(path).register_forward_hook(lambda _m, _x, y, to=outputs: to.append(y))
            stack.callback(handle.remove)
        if found:
            module(*copies(inputs), **concrete)
    return found


class _Capture(TorchFunctionMode):
    def __init__(self, root: nn.Module, opaque: Calls) -> None:
        super().__init__()
        self._root = root
        self._opaque = {path: iter(outputs) for path, outputs in opaque.items()}
        self._real_samples = 0
        self._graph = Graph()
        self._sizes = Sizes(self._graph)
        self._fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._paths: dict[nn.Module, str] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, path)
        tensors = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
        self._stored = {id(tensor): (path, tensor) for path, tensor in reversed(tensors)}
        self._nodes: dict[int, tuple[Node, Tensor]] = {}
        self._watching = True
        self._stack: dict[str, Any] = {}
        self._at: str | None = None
        self._samples: Any = 0
        self._constants: dict[str, Tensor] = {}

    def run(self, inputs: tuple[Tensor, ...], concrete: dict[str, Any]) -> GraphModule:
        """The graph, over the module's own submodules and tensors."""
        names = argument_names(self._root, len(inputs))
        fakes = [self._input(name, x) for name, x in zip(names, inputs, strict=True)]
        try:
            # The dispatcher in Python knows how each step goes with sizes that are symbols.
            with torch.no_grad(), _unchanged(self._root), self._calls(), enable_python_dispatcher(), self._fake, self:
                result = self._root(*fakes, **concrete)
            self._graph.output(self._result(result))
        except Exception as error:  # the user's code may raise anything
            raise CaptureError(self._at or "", error) from error
        for name, tensor in self._constants.items():
            self._root.register_buffer(name, tensor, persistent=False)
        try:
            return GraphModule(self._root, self._graph, class_name=type(self._root).__name__)
        finally:
            for name in self._constants:
                delattr(self._root, name)

    def _input(self, name: str, x: Tensor) -> Tensor:
        node = self._graph.placeholder(name)
        if x.dim() > 0 and x.shape[0] == self._real_samples:  # as many samples as in the first input
            with self._fake:
                fake = torch.empty((self._samples, *x.shape[1:]), dtype=x.dtype)
        else:
            dynamic = [DimDynamic.DYNAMIC if i == 0 else DimDynamic.STATIC for i in range(x.dim())]
            fake = self._fake.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))
        if not self._nodes and x.dim() > 0:
            self._samples, self._real_samples = fake.shape[0], x.shape[0]
            if isinstance(self._samples, torch.SymInt):
                self._sizes.begin(node, self._samples)
        self._track(fake, node)
        return fake

    # What torch is asked to do.

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        if name in VALUES and any(id(a) in self._nodes for a in args):
            raise ValueAskedError("the way taken depends on the values of tensors")
        with self._no_names():
            result = func(*args, **kwargs)
        if name in FACTS or not any(isinstance(t, Tensor) for t in pytree.tree_leaves(result)):
            if name in ("__setitem__", "__set__"):
                self._changed(name, args)
            return result
        if name == "__get__":
            attribute = func.__self__.__name__  # type: ignore[attr-defined]
            node = self._graph.call_function(getattr, (self._argument(args[0]), attribute))
        else:
            node = self._call(func, name, args, kwargs)
        self._stand(node)
        self._track(result, node)
        return result

    def _result(self, result: Any) -> Any:
        """What the module returns; a data class is made anew of what the graph computes."""
        if not dataclasses.is_dataclass(result) or isinstance(result, dict):
            return self._arguments(result)
        fields = {field.name: self._arguments(getattr(result, field.name)) for field in dataclasses.fields(result)}
        return self._graph.call_function(type(result), (), fields)

    def _changed(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "__set__":
            raise NotImplementedError("an attribute of a tensor is set")
        self._stand(self._graph.call_function(operator.setitem, tuple(self._argument(a) for a in args)))

    def _call(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        given = tuple(self._argument(a) for a in args)
        named = {k: self._argument(v) for k, v in kwargs.items()}
        target, given = target_of(func, name, given)
        if isinstance(target, str):
            if name in ("view", "reshape") and (flat := self._flattening(args)) is not None:
                return self._graph.call_function(torch.flatten, (given[0], flat))
            return self._graph.call_method(target, given, named)
        return self._graph.call_function(target, given, named)

    def _flattening(self, args: tuple[Any, ...]) -> int | None:
        """1 for a view that keeps the samples and joins all the rest."""
        shape = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        x = args[0]
        if len(shape) != 2 or x.dim() < 2 or not isinstance(shape[0], torch.SymInt):
            return None
        same = shape[0].node.expr == getattr(getattr(x.shape[0], "node", None), "expr", None)
        rest = x.shape[1:].numel()
        return 1 if same and (shape[1] == -1 or shape[1] == rest) else None

    # What goes into a node, and what comes out.

    def _arguments(self, tree: Any) -> Any:
        return map_leaves(tree, self._argument)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, torch.SymInt):
            return self._sizes.node(value)
        if isinstance(value, torch.SymBool | torch.SymFloat):
            raise ValueAskedError("a number that depends on the values of tensors is used")
        if isinstance(value, list | tuple | dict | slice):
            return map_leaves(value, self._argument)
        return value

    def _tensor(self, tensor: Tensor) -> Node:
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known[0]
        if isinstance(tensor, FakeTensor):
            raise NotImplementedError("a tensor comes from code that cannot be seen")
        path, _ = self._stored.get(id(tensor), (None, None))
        if path is None:
            path = next(f"constant_{n}" for n in range(10**6) if not hasattr(self._root, f"constant_{n}")
                        and f"constant_{n}" not in self._constants)  # fmt: skip
            self._constants[path] = tensor
            self._stored[id(tensor)] = path, tensor
        node = self._graph.get_attr(path) if path not in self._constants else self._graph.create_node("get_attr", path)
        self._nodes[id(tensor)] = node, tensor
        return node

    def _track(self, result: Any, node: Node) -> None:
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node, result  # held, so that its id stays its own
        elif isinstance(result, list | tuple | dict):
            for key in result if isinstance(result, dict) else range(len(result)):
                if any(isinstance(t, Tensor) for t in pytree.tree_leaves(result[key])):
                    part = self._graph.call_function(operator.getitem, (node, key))
                    self._stand(part)
                    self._track(result[key], part)

    def _stand(self, node: Node) -> None:
        node.meta["nn_module_stack"] = dict(self._stack)

    # Modules.

    @contextmanager
    def _calls(self) -> Iterator[None]:
        ordinary = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self._paths.get(module)
            if path is None or not self._watching:
                return ordinary(module, *args, **kwargs)
            return self._module(ordinary, module, path, args, kwargs)

        self._watching = True
        with ExitStack() as stack:
            stack.enter_context(patch.object(nn.Module, "__call__", call))
            yield

    @contextmanager
    def _no_names(self) -> Iterator[None]:
        """Inside one call of torch, modules are no concern of ours."""
        before, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = before

    def _module(
        self, ordinary: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        entry = (path, type(module))
        before = self._stack
        self._stack = {**before, path: entry}
        fixed = self._is_fixed()
        try:
            if path in self._opaque:
                result = self._hidden(path, args, kwargs)
            elif not is_leaf(module):
                result = ordinary(module, *args, **kwargs)
            else:
                result = self._leaf(ordinary, module, path, args, kwargs)
            if self._is_fixed() and not fixed:
                raise ValueAskedError(f"{self._who_asked()}the code depends on the number of samples")
        except Exception:
            if self._at is None:
                self._at = path
            raise
        finally:
            self._stack = before
        return result

    def _leaf(
        self, ordinary: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        node = self._graph.call_module(path, tuple(map(self._argument, args)), self._arguments(kwargs))
        with self._no_names(), torch._C.DisableTorchFunction():
            if isinstance(module, nn.RNNBase) and isinstance(args[0], Tensor) and args[0].dim() == 3:
                result = _states_of(module, args[0])
            else:
                result = ordinary(module, *args, **kwargs)
        self._stand(node)
        with self._no_names():
            self._track(result, node)
        return result

    def _hidden(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of an opaque module, which gives tensors like those that it gave before."""
        node = self._graph.call_module(path, tuple(map(self._argument, args)), self._arguments(kwargs))
        with self._no_names(), torch._C.DisableTorchFunction():
            result = map_leaves(next(self._opaque[path]), self._like)
        self._stand(node)
        with self._no_names():
            self._track(result, node)
        return result

    def _like(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        is_batch = value.dim() > 0 and value.shape[0] == self._real_samples
        shape = (self._samples, *value.shape[1:]) if is_batch else value.shape
        return torch.empty(shape, dtype=value.dtype, device=value.device)

    def _is_fixed(self) -> bool:
        """Whether something has asked for the number of samples itself."""
        return isinstance(self._samples, torch.SymInt) and self._samples.node.maybe_as_int() is not None

    def _who_asked(self) -> str:
        """The user's line that did, if torch has noted it."""
        assert isinstance(self._samples, torch.SymInt)
        noted = getattr(self._fake.shape_env, "replacements_slocs", {}).get(self._samples.node._expr)
        frame = None if noted is None else noted.framework_loc
        return f"{place_of(frame)}: " if isinstance(frame, FrameSummary) and is_user_code(frame.filename) else ""


def _states_of(module: nn.RNNBase, x: Tensor) -> Any:
    """What a recurrent layer gives, by its shapes alone: torch would go through the steps one by one."""
    ways, hidden = 2 if module.bidirectional else 1, module.proj_size or module.hidden_size
    samples, states = x.shape[0 if module.batch_first else 1], ways * module.num_layers
    y, h = x.new_empty((*x.shape[:2], ways * hidden)), x.new_empty((states, samples, hidden))
    return y, (h, x.new_empty((states, samples, module.hidden_size))) if isinstance(module, nn.LSTM) else h


@contextmanager
def _unchanged(root: nn.Module) -> Iterator[None]:
    """Attributes as they were afterwards: code that caches tensors would keep some without values."""
    before = [(m, {k: copy.copy(v) if type(v) in (dict, list) else v for k, v in vars(m).items()})
              for m in root.modules()]  # fmt: skip
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
