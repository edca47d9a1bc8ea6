"""Graphs inside code that cannot be followed: what such code calls is traced by itself and put in its place."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from bnnconvert.graph import WEIGHT_LAYERS, copy_sharing, set_module
from bnnconvert.trace.compare import require_same
from bnnconvert.trace.dataflow import KINDS

Follow = Callable[[nn.Module, tuple[Tensor, ...]], GraphModule | None]
LAYER = "layer"
"""Path of a layer that code calls by itself, below the place where it was."""


@dataclass(frozen=True)
class Ends:
    """Whether the weights of no other graph come before one, or behind it, in the code around them."""

    is_first: bool
    is_last: bool


@dataclass
class _Called:
    """One module as it was called."""

    path: str
    caller: str
    inputs: list[tuple[Any, ...]]
    """One tuple of arguments for each call; those by name count as one that is no tensor."""


def put_graphs_inside(graph: GraphModule, inputs: tuple[Tensor, ...], follow: Follow) -> dict[str, Ends]:
    """Let graphs stand for what opaque modules call, where they give the same; where each of them stands, by path.

    The opaque modules in `graph` become copies that share their parameters with the user's.
    """
    found: list[str] = []
    for path in graph.meta["opaque"]:
        whole = graph.get_submodule(path)
        clone = copy_sharing(whole, (*whole.parameters(), *whole.buffers()))
        set_module(graph, path, clone)
        inner = _put(graph, inputs, path, follow)
        _keep_in_evaluation(clone, inner)
        found += [f"{path}.{name}" for name in inner]
    return _ends(graph, inputs, found)


def _put(graph: GraphModule, inputs: tuple[Tensor, ...], path: str, follow: Follow) -> list[str]:
    root = graph.get_submodule(path)
    called, expected = _calls_inside(graph, inputs, path)
    made = dict(_graphs(root, called, follow))
    whole = {name: root.get_submodule(name) for name in made}
    for name, part in made.items():
        set_module(root, name, part)
    if _same(graph, inputs, expected):
        return list(made)
    for name, module in whole.items():
        set_module(root, name, module)
    kept = []
    for name, part in made.items():  # code that looks at the attributes of what it calls, or calls it otherwise
        set_module(root, name, part)
        if _same(graph, inputs, expected):
            kept.append(name)
        else:
            set_module(root, name, whole[name])
    return kept


def _graphs(root: nn.Module, called: dict[str, _Called], follow: Follow) -> Iterator[tuple[str, GraphModule]]:
    """Graphs of the outermost modules that have one, in the order of their calls."""
    waiting = [call for call in called.values() if call.caller == ""]
    while waiting:
        call = waiting.pop(0)
        module = root.get_submodule(call.path)
        if not any(isinstance(m, WEIGHT_LAYERS) for m in module.modules()):
            continue
        part = _graph(module, call, follow)
        if part is not None:
            yield call.path, part
        else:
            waiting = [c for c in called.values() if c.caller == call.path] + waiting


def _graph(module: nn.Module, call: _Called, follow: Follow) -> GraphModule | None:
    if not all(args and all(isinstance(a, Tensor) for a in args) for args in call.inputs):
        return None
    if isinstance(module, WEIGHT_LAYERS) and type(module) not in KINDS:
        return None
    if isinstance(module, WEIGHT_LAYERS):
        flat = Graph()
        flat.output(flat.call_module(LAYER, (flat.placeholder("x"),)))
        module = GraphModule({LAYER: module}, flat)
    return follow(module, call.inputs[0])


def _calls_inside(graph: GraphModule, inputs: tuple[Tensor, ...], path: str) -> tuple[dict[str, _Called], object]:
    """Modules that the code at `path` calls, by their paths below it, and the output of the whole."""
    root = graph.get_submodule(path)
    stack, called = [""], dict[str, _Called]()

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = called.setdefault(name, _Called(name, stack[-1], []))
            call.inputs.append((*args, kwargs) if kwargs else args)
            stack.append(name)

        return hook

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        stack.pop()

    with ExitStack() as handles, torch.no_grad():
        for name, module in root.named_modules():
            if name:
                entering = module.register_forward_pre_hook(enter(name), with_kwargs=True)
                handles.callback(entering.remove)
                handles.callback(module.register_forward_hook(leave, always_call=True).remove)
        output = graph(*inputs)
    return called, output


def _ends(graph: GraphModule, inputs: tuple[Tensor, ...], paths: list[str]) -> dict[str, Ends]:
    """Which graphs feed which, by the way that gradients would take; what code cuts off from them feeds nothing."""
    before: dict[str, list[Any]] = {path: [] for path in paths}
    behind: dict[Any, str] = {}

    def note(path: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before[path] += [t.grad_fn for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
            found = (t.grad_fn for t in pytree.tree_leaves(output) if isinstance(t, Tensor))
            behind.update({step: path for step in found if step is not None})

        return hook

    with ExitStack() as handles, torch.enable_grad():
        for path in paths:
            handles.callback(graph.get_submodule(path).register_forward_hook(note(path)).remove)
        graph(*inputs)
    feeds = {path: {behind[s] for s in _steps_before(steps) if s in behind} - {path} for path, steps in before.items()}
    read = set().union(*feeds.values())
    return {path: Ends(is_first=not feeds[path], is_last=path not in read) for path in paths}


def _steps_before(steps: list[Any]) -> set[Any]:
    """These steps of automatic differentiation, and all before them."""
    found, waiting = set[Any](), [step for step in steps if step is not None]
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += [earlier for earlier, _ in step.next_functions if earlier is not None]
    return found


def _same(graph: GraphModule, inputs: tuple[Tensor, ...], expected: object) -> bool:
    try:
        with torch.no_grad():
            require_same(expected, graph(*inputs))
    except Exception:  # the user's code may raise anything
        return False
    return True


def _keep_in_evaluation(module: nn.Module, inner: list[str]) -> None:
    """Keep code that cannot be followed as it was checked: only the graphs inside it go into training mode."""
    kind = type(module)

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        for name in inner:
            self.get_submodule(name).train(mode)
        return self

    module.__class__ = type(kind.__name__, (kind,), {"train": train, "__module__": kind.__module__})
