"""Three ways to a graph, the easiest one first, with notes and refusals that point at the user's own line.

1  symbolic: the model's code runs on stand-ins, so that every size stays open
2  along the example: it runs on tensors without values, so that decisions by shapes and types simply happen
3  around what cannot be followed: a module whose code decides by values is called as it is, and the rest is a graph

`graph.meta["notes"]` says which way was taken and why, `graph.meta["opaque"]` what is inside no graph.
"""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer

from bnnconvert.errors import RefusalError, UsageError, VerificationError, first_line
from bnnconvert.graph import propagate_shapes
from bnnconvert.trace.blame import blame
from bnnconvert.trace.canonical import canonicalise
from bnnconvert.trace.capture import CaptureError, capture, outputs_of


def trace(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """Canonical graph of `module`, with shapes on every node, checked against the module itself.

    The graph shares the module's parameters.

    Raises: RefusalError if the module cannot be traced; UsageError if it rejects the example input.
    """
    module.eval()
    expected = run_example(module, example_inputs)
    graph = _graph_of(module, example_inputs)
    canonicalise(graph)
    propagate_shapes(graph, *example_inputs)
    with torch.no_grad():
        _require_same(expected, graph(*example_inputs))
    return graph


def run_example(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> object:
    """Output of `module` on the example input.

    Raises: UsageError if the module rejects it.
    """
    try:
        with torch.no_grad():
            return module(*example_inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example_inputs)
        reason = first_line(error)
        raise UsageError(
            f"{type(module).__name__} does not accept an input of shape {shapes} ({reason}); "
            "give the right one with --input-shape."
        ) from error


def _graph_of(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    try:
        return GraphModule(module, Tracer().trace(module), class_name=type(module).__name__)
    except Exception as error:  # the user's code may raise anything
        why = blame(error)
    opaque: dict[str, str] = {}
    while True:
        try:
            graph = capture(module, example_inputs, opaque=outputs_of(module, example_inputs, opaque))
            break
        except CaptureError as error:
            if not error.path or error.path in opaque:
                inside = f" in {error.path!r}" if error.path else ""
                raise RefusalError(
                    f"{type(module).__name__} cannot be traced{inside}: {blame(error.cause)}; rewrite that line so "
                    "that it does not depend on the values of tensors, or move it into a module of its own."
                ) from error
            opaque[error.path] = blame(error.cause)
    # A module inside another that was found later is hidden with it.
    opaque = {p: r for p, r in opaque.items() if not any(p.startswith(f"{other}.") for other in opaque)}
    graph.meta["opaque"] = opaque
    graph.meta["notes"] = (
        f"Traced along the example input, as symbolic tracing stops at {why}.",
        *(f"{path!r} is called as it is and stays float, and its code keeps the student from being exported: {reason}."
          for path, reason in opaque.items()),
    )  # fmt: skip
    return graph


def _require_same(expected: object, actual: object) -> None:
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        if torch.allclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True):
            return
        raise VerificationError(
            "the traced graph gives other values than the model itself, which probably behaves differently from call "
            "to call (randomness, a counter); make its evaluation mode deterministic."
        )
    if isinstance(expected, tuple | list) and isinstance(actual, tuple | list):
        for one, other in zip(expected, actual, strict=True):
            _require_same(one, other)
    elif isinstance(expected, dict) and isinstance(actual, dict):
        for key in expected:
            _require_same(expected[key], actual[key])
