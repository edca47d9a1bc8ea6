"""The ladder to a graph, the easiest rung first, with notes and refusals that point at the user's own line.

symbolic       the model's code runs on stand-ins, so that every size stays open
along          it runs on tensors without values, so that decisions by shapes and types simply happen
around         a module whose code decides by values is called as it is; the rest is a graph, and what that module
               calls is traced by the same ladder and becomes a graph inside it
whole          the model's own code decides by values: all of it is called as it is, with graphs inside

A rung holds when its graph gives what the module itself gives. `graph.meta` says `rung`, `notes` (why it is not the
first rung), `opaque` (modules that are called as they are, and why), `inner` (the graphs inside those, by path) and
`leaves` (what the user wanted left whole).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Proxy, Tracer

from bnnconvert.errors import BnnError, UsageError, VerificationError
from bnnconvert.graph import tidy
from bnnconvert.shapes import propagate_shapes
from bnnconvert.trace.attention import expand_attention
from bnnconvert.trace.blame import blame
from bnnconvert.trace.calls import CaptureError, argument_names, copies, is_leaf
from bnnconvert.trace.canonical import canonicalise
from bnnconvert.trace.cells import expand_cells
from bnnconvert.trace.compare import require_same
from bnnconvert.trace.inside import put_graphs_inside
from bnnconvert.trace.products import gather_attention
from bnnconvert.trace.recurrent import expand_recurrent
from bnnconvert.trace.transposed import expand_transposed
from bnnconvert.values.inputs import run_example
from bnnconvert.values.steering import Steering

WHOLE = "model"
"""Path of a model that is called as it is."""


def trace(module: nn.Module, example_inputs: tuple[Tensor, ...], steering: Steering | None = None) -> GraphModule:
    """Canonical graph of `module`, with shapes on every node, checked against the module itself.

    The graph shares the module's parameters.

    Raises: RefusalError if the module gives something else from call to call; UsageError if it rejects the example.
    """
    steering = steering or Steering()
    _check_steering(module, steering)
    module.eval()
    expected = run_example(module, copies(example_inputs), steering.concrete)
    with _step_by_step():
        try:
            return follow(module, example_inputs, expected, steering)
        except CaptureError as error:
            why = blame(error.cause)
        except VerificationError:
            why = "its graph gives other values"
        return _whole(module, example_inputs, expected, steering, why)


@contextmanager
def _step_by_step() -> Iterator[None]:
    """Torch's transformer layers as steps, without the one fused call that stands for them in evaluation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def follow(module: nn.Module, inputs: tuple[Tensor, ...], expected: object, steering: Steering) -> GraphModule:
    """The graph of the first of the upper rungs that holds.

    Raises: CaptureError if the module's own code cannot be followed.
    """
    try:
        graph = _symbolic(module, inputs, expected, steering)
    except VerificationError:
        why = "gives another function"
    except Exception as error:  # the user's code may raise anything
        why = f"stops at {blame(error)}"
    else:
        graph.meta["rung"] = "symbolic"
        return graph
    graph = _captured(module, inputs, steering)
    graph.meta["notes"] = (f"Traced along the example input, as symbolic tracing {why}.",)
    graph.meta["rung"] = "around" if graph.meta["opaque"] else "along"
    return _finished(graph, inputs, expected, steering)


def _check_steering(module: nn.Module, steering: Steering) -> None:
    paths = {path for path, _ in module.named_modules() if path}
    for path in steering.leaves:
        if path not in paths:
            close = ", ".join(sorted(p for p in paths if path.rpartition(".")[2] in p)[:5]) or ", ".join(
                sorted(paths)[:5]
            )
            raise UsageError(f"--leaf {path}: the model has no such module; it has, for example, {close}.")


class _Tracer(Tracer):
    """Symbolic tracing that gives stand-ins to the first arguments only, and leaves some modules whole."""

    def __init__(self, arguments: list[str], steering: Steering) -> None:
        super().__init__()
        self._arguments, self._steering = arguments, steering

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether to call a module as it is."""
        return module_qualified_name in self._steering.leaves or is_leaf(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The model's forward with everything settled but its inputs."""

        def forward(*inputs: Proxy) -> Any:
            return root_fn(*inputs, **self._steering.concrete)

        inputs = [self.create_proxy("placeholder", name, (), {}) for name in self._arguments]
        return forward, [self.root, *inputs]


def _symbolic(module: nn.Module, inputs: tuple[Tensor, ...], expected: object, steering: Steering) -> GraphModule:
    tracer = _Tracer(argument_names(module, len(inputs)), steering)
    graph = GraphModule(module, tracer.trace(module), class_name=type(module).__name__)
    return _finished(graph, inputs, expected, steering)


def _captured(module: nn.Module, inputs: tuple[Tensor, ...], steering: Steering) -> GraphModule:
    # Here, as symbolic sizes take a second to import and most models do without.
    from bnnconvert.trace.capture import capture, outputs_of

    opaque: dict[str, str] = {}
    while True:
        try:
            outputs = outputs_of(module, inputs, steering.concrete, [*opaque, *steering.leaves])
            graph = capture(module, inputs, steering.concrete, opaque=outputs)
            break
        except CaptureError as error:
            if not error.path or error.path in opaque:
                raise CaptureError("", error.cause) from error
            opaque[error.path] = blame(error.cause)
    # A module inside another that was found later is hidden with it.
    opaque = {p: r for p, r in opaque.items() if not any(p.startswith(f"{other}.") for other in opaque)}
    graph.meta["opaque"] = opaque
    return graph


def _whole(
    module: nn.Module, inputs: tuple[Tensor, ...], expected: object, steering: Steering, reason: str
) -> GraphModule:
    """One call of the model as it is."""
    flat = Graph()
    placed = tuple(flat.placeholder(name) for name in argument_names(module, len(inputs)))
    flat.output(flat.call_module(WHOLE, placed, steering.concrete))
    graph = GraphModule({WHOLE: module}, flat, class_name=type(module).__name__)
    graph.eval()
    graph.meta["rung"] = "whole"
    graph.meta["opaque"] = {WHOLE: reason}
    graph.meta["notes"] = (f"The model itself cannot be followed and is {WHOLE!r} in all paths.",)
    return _finished(graph, inputs, expected, steering)


def _finished(graph: GraphModule, inputs: tuple[Tensor, ...], expected: object, steering: Steering) -> GraphModule:
    """The canonical graph with shapes, which gives what the module gives; with graphs inside what is opaque."""
    graph.meta["leaves"] = steering.leaves
    computed = canonicalise(graph)
    if computed:
        listed = ", ".join(computed[:3]) + (f" and {len(computed) - 3} more" if len(computed) > 3 else "")
        note = f"The model computes the weight of {listed} from parameters alone: a plain parameter of that value now."
        graph.meta["notes"] = (*graph.meta.get("notes", ()), note)
    propagate_shapes(graph, *copies(inputs))
    expansions = (gather_attention, expand_attention, expand_recurrent, expand_cells, expand_transposed)
    is_expanded = sum(expand(graph) for expand in expansions) > 0
    if is_expanded:
        tidy(graph)
        propagate_shapes(graph, *copies(inputs))
    given = copies(inputs)
    with torch.no_grad():
        # What has become of expanded layers adds in another order, and layers behind it may magnify that.
        require_same(expected, graph(*given), atol=1e-4 if is_expanded else 1e-5)
    if not all(bool(((x == y) | y.isnan()).all()) for x, y in zip(given, inputs, strict=True)):
        _keep_inputs(graph)
    if graph.meta.get("opaque"):
        graph.meta["inner"] = put_graphs_inside(graph, inputs, _follow_inner)
        graph.meta["notes"] = graph.meta.get("notes", ()) + tuple(
            f"{path!r} is called as it is, and its code keeps the student from being exported: {reason}."
            for path, reason in graph.meta["opaque"].items()
        )
    return graph


def _keep_inputs(graph: GraphModule) -> None:
    """Let a model that writes into what it is given write into a copy: student and teacher read the same batch."""
    for node in [n for n in graph.graph.nodes if n.op == "placeholder"]:
        readers = list(node.users)
        with graph.graph.inserting_after(node):
            copied = graph.graph.call_method("clone", (node,))
        copied.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, copied)
    graph.recompile()


def _follow_inner(module: nn.Module, inputs: tuple[Tensor, ...]) -> GraphModule | None:
    """A graph to stand for a module inside code that cannot be followed, if there is one."""
    try:
        with torch.no_grad():
            expected = module(*copies(inputs))
        return follow(module, inputs, expected, Steering())
    except (CaptureError, BnnError):
        return None
