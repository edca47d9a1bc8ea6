"""Symbolic tracing, with refusals that point at the user's own line."""

import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer
from torch.fx.proxy import TraceError

from bnnconvert.errors import RefusalError, UsageError, VerificationError, first_line
from bnnconvert.graph import propagate_shapes
from bnnconvert.trace.canonical import canonicalise

_OURS = Path(__file__).resolve().parents[1]
_TORCH = Path(torch.__file__).resolve().parent


def trace(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> GraphModule:
    """Canonical graph of `module`, with shapes on every node, checked against the module itself.

    The graph shares the module's parameters.

    Raises: RefusalError if the module cannot be traced; UsageError if it rejects the example input.
    """
    module.eval()
    expected = run_example(module, example_inputs)
    try:
        graph = GraphModule(module, Tracer().trace(module), class_name=type(module).__name__)
    except (TraceError, TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise RefusalError(
            f"{type(module).__name__} cannot be traced: {_blame(error)}; rewrite that line so that it does not depend "
            "on the values of tensors, or move it into a module without weights."
        ) from error
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


def _blame(error: Exception) -> str:
    """User's file, line and expression at which tracing failed, and torch's reason."""
    reason = first_line(error)
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not any(Path(f.filename).is_relative_to(p) for p in (_OURS, _TORCH)) and not f.filename.startswith("<")
    ]
    if not frames:
        return reason
    where = frames[-1]
    return f"{where.filename}:{where.lineno}, in `{where.line}`: {reason}"


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
