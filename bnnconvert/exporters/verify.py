"""Compare a session with the student that it was exported from.

Binary operators are exact, so the two can part only where a float value lands on the other side of a sign's
threshold. Per sample, the earliest layer whose input bits differ must therefore differ only in bits whose float value
lies within rounding of a threshold: |x - t| <= ROUNDING * max|x|, the maximum taken over the layer's input. After that
layer the sample is on another path, and its later bits and outputs may differ by any amount.
A sample whose bits all agree must agree in its outputs within TOLERANCE * max(SMALL, max|output|).

The layers are seen in the portable executor. Where the session runs on the native engine, that engine's outputs must
agree with the portable ones in the same sense (`boundary.EngineCheck`).

Independently of that, each binary layer must be exact: its accumulators must equal those that the student's own map
gives for the bits that entered it in the session.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from bnnconvert.artifact.schema import Array
from bnnconvert.bits import Bits
from bnnconvert.exporters.boundary import EngineCheck, Flips, at_boundary, differing
from bnnconvert.graph import evaluation
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.runtime.session import Session, flattened
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.values.inputs import Example, as_tuple
from bnnconvert.values.program import Value
from bnnconvert.values.report import LayerFlips, VerifyReport


def verify(
    student: GraphModule, session: Session, batches: Iterable[Example], *, task: Task = CLASSIFICATION
) -> VerifyReport:
    """Run both on every batch and account for every difference; the student's mode is left as it was."""
    tally, check = _Tally(task), None
    with evaluation(student), torch.no_grad():
        for batch in batches:
            recorder, inputs = Recorder(student), as_tuple(batch)
            expected = flattened(recorder.run(*inputs))
            arrays = [x.numpy() for x in inputs]
            values = session.trace(*arrays)
            flips = _LayerFlips(len(inputs[0]))
            for name, call, bits, acc in _binary_calls(session, values):
                layer = student.get_submodule(name)
                assert isinstance(layer, BinaryLayer)
                inexact = acc != accumulators(layer, torch.from_numpy(bits)).numpy()
                flips.add(name, bits, layer, recorder.inputs[name][call], inexact=inexact)
            actual = [values[name] for name in session.program.output.values()]
            tally.add(flips, actual, [e.numpy() for e in expected])
            if session.isa is not None:
                differs, _ = differing(flattened(session.run(*arrays)), actual)
                explained = differs.copy()
                if differs.any():
                    check = check or EngineCheck(session)
                    explained[differs] = check.explained([a[differs] for a in arrays], check.values_of(values, differs))
                tally.add_engine(differs, explained)
    return tally.report(session.isa)


class Recorder(Interpreter):
    """Runs a student and keeps what enters its binary layers, call by call."""

    def __init__(self, student: GraphModule) -> None:
        super().__init__(student)
        self.inputs: dict[str, list[Tensor]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), BinaryLayer):
            self.inputs.setdefault(target, []).append(args[0])
        return super().call_module(target, args, kwargs)


def _binary_calls(session: Session, values: Mapping[str, Array]) -> Iterator[tuple[str, int, Bits, Array]]:
    """Layer, number of its call, the bits that entered it and the accumulators that left it."""
    calls: dict[str, int] = {}
    for node in session.program.nodes:
        if node.op in ("bnnconvert.binary_conv2d", "bnnconvert.binary_linear"):
            argument = node.arguments["bits"]
            assert isinstance(argument, Value)
            bits, acc = values[argument.value], values[node.outputs[0].name]
            yield node.layer, calls.setdefault(node.layer, 0), bits, acc
            calls[node.layer] += 1


def student_bits(layer: BinaryLayer, x: Tensor) -> Tensor:
    """Input bits as the student's own binarizer gives them, planes on the channel axis."""
    assert layer.input_binarizer is not None
    return torch.cat([plane.pm1 > 0 for plane in layer.input_binarizer.planes(x)], 1)


def accumulators(layer: BinaryLayer, bits: Tensor) -> Tensor:
    """The student's own map of input bits.

    Shapes: bits (N, P * C, ...) -> (N, P * M * O, ...) or, for a linear layer, planes and outputs on the last axis.
    """
    axis = 1 if isinstance(layer, BinaryConv2d) else -1
    channels = layer.weight.shape[1] * (layer.groups if isinstance(layer, BinaryConv2d) else 1)
    planes = torch.split(bits.to(layer.weight.dtype) * 2 - 1, channels, axis)
    return torch.cat([layer.linear_map(a, b.pm1) for a in planes for b in layer.weight_planes()], axis)


def layer_boundary(layer: BinaryLayer, x: Tensor) -> Bits:
    """Which input bits of a layer belong to a value within rounding of a threshold."""
    assert layer.input_binarizer is not None
    return at_boundary(x.numpy(), layer.input_binarizer.encoder().thresholds.numpy())


class _LayerFlips:
    """Differences in the bits that enter each layer's calls, for one batch."""

    def __init__(self, samples: int) -> None:
        self.layers: list[LayerFlips] = []
        self.flips = Flips(samples)

    def add(self, name: str, bits: Bits, layer: BinaryLayer, x: Tensor, *, inexact: Bits) -> None:
        """Compare the bits that enter one call of a layer; parts of one sample, such as windows, are neighbours."""
        flips = (bits != student_bits(layer, x).numpy()).reshape(len(self.flips.parted), -1)
        boundary = flips & layer_boundary(layer, x).reshape(flips.shape) if flips.any() else flips
        first = self.flips.add(flips, boundary)
        self.layers.append(
            LayerFlips(
                layer=name,
                bits=flips.size,
                flips=int(flips.sum()),
                boundary=int(boundary.sum()),
                first=int(first.sum()),
                first_boundary=int((first & boundary).sum()),
                accumulators=inexact.size,
                inexact=int(inexact.sum()),
            )
        )


@dataclass
class _Tally:
    """Sums over batches."""

    task: Task
    samples: int = 0
    agreeing: float = 0
    differing: int = 0
    unexplained: int = 0
    largest: float = 0.0
    engine_differing: int = 0
    engine_unexplained: int = 0
    layers: list[LayerFlips] = field(default_factory=list)

    def add(self, flips: _LayerFlips, actual: list[Array], expected: list[Array]) -> None:
        """Account for one batch."""
        differs, largest = differing(actual, expected)
        self.largest = max(self.largest, largest)
        if actual:
            ours, theirs = (torch.from_numpy(np.ascontiguousarray(side[0])) for side in (actual, expected))
            self.agreeing += float(self.task.agreement(ours, theirs).sum())
        self.samples += len(differs)
        self.differing += int(differs.sum())
        self.unexplained += int((differs & ~(flips.flips.parted & flips.flips.explained)).sum())
        self.layers = (
            [_sum(*pair) for pair in zip(self.layers, flips.layers, strict=True)] if self.layers else flips.layers
        )

    def add_engine(self, differs: Bits, explained: Bits) -> None:
        """Account for the native engine's outputs of one batch against the portable ones."""
        self.engine_differing += int(differs.sum())
        self.engine_unexplained += int((differs & ~explained).sum())

    def report(self, isa: str | None) -> VerifyReport:
        """What it all came to; `isa` is what the native engine ran on."""
        return VerifyReport(
            self.samples,
            self.agreeing / self.samples if self.samples else 1.0,
            self.largest,
            self.differing,
            self.unexplained,
            tuple(self.layers),
            isa,
            self.engine_differing,
            self.engine_unexplained,
            self.task.same,
        )


def _sum(a: LayerFlips, b: LayerFlips) -> LayerFlips:
    counts = ("bits", "flips", "boundary", "first", "first_boundary", "accumulators", "inexact")
    return LayerFlips(a.layer, *(getattr(a, name) + getattr(b, name) for name in counts))
