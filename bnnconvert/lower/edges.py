"""The float layers at the ends of a student in 8 bits, calibrated after training.

The first layer's output meets a sign, and a systematic error there would push whole channels over its boundary. So the
input's range is the one with the least squared error on the calibration data, and each output channel is corrected by
its mean error on them.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.errors import RefusalError
from bnnconvert.graph import set_module
from bnnconvert.layers.int8 import LARGEST, Int8Layer, int8_layer
from bnnconvert.values.inputs import Example, run_on
from bnnconvert.values.program import Constant, Program, Value

SHARES = [i / 50 for i in range(15, 51)]
"""Ranges to try, as shares of the largest magnitude."""
LOOK_AT = 2**18
"""Elements of all batches that the search for the range looks at."""


@dataclass(frozen=True)
class Edge:
    """What calibration finds for one layer."""

    factor: float
    bias: Tensor
    """Of the 8-bit layer, the correction included. Shapes: (O,)."""


def calibrate(student: GraphModule, paths: Sequence[str], batches: Iterable[Example]) -> dict[str, Edge]:
    """Ranges and corrections of the layers at `paths`, which are float convolutions and linear layers.

    Raises: RefusalError for a layer without an 8-bit form, or one whose input is all zero.
    """
    inputs = list(batches)
    edges: dict[str, Edge] = {}
    for path in paths:
        seen = _inputs_of(student, path, inputs)
        layer = student.get_submodule(path)
        made = _made(layer, path, _factor(seen, path))
        with torch.no_grad():
            errors = [_channel_mean(layer(x) - made(x), layer) for x in seen]
        edges[path] = Edge(made.factor, made.bias + torch.stack(errors).mean(0))
    return edges


def with_edges(student: GraphModule, edges: Mapping[str, Edge]) -> GraphModule:
    """A copy of the student, in evaluation mode, with these layers in 8 bits.

    Raises: RefusalError for a path without a layer, or with one that has no 8-bit form or another number of outputs.
    """
    made = copy.deepcopy(student).eval()
    modules = dict(made.named_modules())
    for path, edge in edges.items():
        if path not in modules:
            raise RefusalError(f"{path}: the student has no such layer; was the file exported from another run?")
        layer = _made(modules[path], path, edge.factor)
        if layer.bias.shape != edge.bias.shape:
            raise RefusalError(
                f"{path}: the student's layer has other outputs; was the file exported from another run?"
            )
        layer.bias.copy_(edge.bias)
        set_module(made, path, layer)
    return made


def edges_of(program: Program, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Edge]:
    """The 8-bit layers of a program, by path."""
    makers = {spec.name: node for node in program.nodes for spec in node.outputs}
    edges: dict[str, Edge] = {}
    for node in program.nodes:
        acc = node.arguments.get("acc") if node.op == "bnnconvert.affine" else None
        dot = makers.get(acc.value) if isinstance(acc, Value) else None
        if dot is None or not dot.op.startswith("bnnconvert.int8_"):
            continue
        x, bias = dot.arguments["x"], node.arguments["bias"]
        maker = makers.get(x.value) if isinstance(x, Value) else None
        factor = None if maker is None else maker.arguments.get("factor")
        if isinstance(bias, Constant) and isinstance(factor, int | float):  # as export writes it
            edges[dot.layer] = Edge(float(factor), torch.from_numpy(tensors[bias.tensor].copy()))
    return edges


def _made(layer: nn.Module, path: str, factor: float) -> Int8Layer:
    made = int8_layer(layer, factor)
    if made is None:
        raise RefusalError(f"{path}: a {type(layer).__name__} of this form has no 8 bits; leave out --edges int8.")
    return made


def _inputs_of(student: GraphModule, path: str, batches: Sequence[Example]) -> list[Tensor]:
    seen: list[Tensor] = []
    hook = student.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        with torch.no_grad():
            for x in batches:
                run_on(student, x)
    finally:
        hook.remove()
    return seen


def _factor(seen: Sequence[Tensor], path: str) -> float:
    """127 over the range with the least squared error."""
    values = torch.cat([x.flatten()[:: max(1, x.numel() * len(seen) // LOOK_AT)] for x in seen])
    largest = float(values.abs().max())
    if not 0 < largest < float("inf"):
        raise RefusalError(f"{path}: its input reaches {largest} on the calibration data; give data it was made for.")

    def error(share: float) -> float:
        factor = LARGEST / (share * largest)
        rounded = (values * factor).clamp(-LARGEST, LARGEST).round() / factor
        return float((values - rounded).square().sum())

    return LARGEST / (min(SHARES, key=error) * largest)


def _channel_mean(x: Tensor, layer: nn.Module) -> Tensor:
    axis = 1 if isinstance(layer, nn.Conv2d) else x.dim() - 1
    return x.mean([i for i in range(x.dim()) if i != axis])
