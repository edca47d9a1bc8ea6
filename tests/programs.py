"""Small programs and their inputs, drawn by hypothesis or made from a torch function; for executors to agree on."""

import math
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from bnnconvert.artifact.schema import Array
from bnnconvert.bits import pack_rows
from bnnconvert.lower.program import lower
from bnnconvert.runtime import native
from bnnconvert.runtime.executor import Executor
from bnnconvert.runtime.segments import parts_of
from bnnconvert.trace.tracer import trace
from bnnconvert.values.program import Argument, Batch, Constant, Node, Output, Program, Value, ValueSpec

CHANNELS = [1, 3, 7, 8, 15, 16, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 200]
OUTPUTS = [1, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128]
NONE = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Case:
    """A program with one output `y`, its tensors, and an input."""

    program: Program
    tensors: dict[str, Array]
    x: Array

    def run(self, isa: str | None, threads: int = 1) -> Array:
        """Output for the input; by the portable executor, or on one of the engine's instruction sets."""
        if isa is not None and HOST:
            return self._run_on_host(isa, threads)
        executor = Executor(self.program, self.tensors, "case", threads=threads, isa=isa)
        assert isa is None or executor.is_native, executor.reasons
        return executor.run([self.x])[next(self.program.output.values())]

    def _run_on_host(self, isa: str, threads: int) -> Array:
        (part,), _ = parts_of(self.program, self.tensors)
        assert part.plan is not None
        with tempfile.TemporaryDirectory() as folder:
            plan, given, made = (Path(folder) / name for name in ("plan", "input", "output"))
            plan.write_bytes(part.plan)
            given.write_bytes(np.ascontiguousarray(self.x).tobytes())
            subprocess.run([*HOST, plan, given, made, str(threads), isa], check=True)
            shape = self.program.specs()[part.outputs[0]].sized(len(self.x))
            return np.frombuffer(made.read_bytes(), np.float32).reshape(shape)


HOST = shlex.split(os.environ.get("BNNCONVERT_TEST_HOST", ""))
"""Command of `examples/host.c` on another machine, where that one's engine is to be tested."""


def instruction_sets() -> list[str]:
    """Those of the machine under test."""
    if not HOST:
        return native.instruction_sets()
    return subprocess.run([*HOST, "--isas"], check=True, capture_output=True, text=True).stdout.split()


def _spec(name: str, dtype: str, *shape: int) -> ValueSpec:
    return ValueSpec(name=name, dtype=dtype, shape=(Batch(batch=1), *shape))


@dataclass(frozen=True)
class _Window:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out(self, size: Sequence[int]) -> tuple[int, ...]:
        axes = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


_SAME = _Window((3, 3), (1, 1), (1, 1), (1, 1))


@st.composite
def windows(draw: st.DrawFn) -> _Window:
    kernel = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (5, 5), (1, 3), (3, 1), (7, 7)]))
    axis = st.integers(1, 3)
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    return _Window(kernel, (draw(axis), draw(axis)), padding, (draw(axis), draw(axis)))


@st.composite
def binary_networks(draw: st.DrawFn) -> Case:
    """encode, convolution, and then either an affine sum of planes, or thresholds and a second convolution."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    limit = 1000 if groups == 1 else 40
    per_group = draw(st.sampled_from([c for c in CHANNELS if c <= limit]))
    outputs = groups * draw(st.sampled_from([o for o in OUTPUTS if o <= limit]))
    channels = groups * per_group
    planes, weight_planes = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1), (3, 2)]))
    window = draw(windows())
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)).filter(lambda s: min(window.out(s)) >= 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 2))

    tensors: dict[str, Array] = {
        "thresholds": np.sort(rng.standard_normal((planes, channels, levels)).astype(np.float32), -1),
        "start": rng.random((planes, channels)) < 0.5,
    }
    nodes = [_encode("x", "bits", tensors, "thresholds", "start", planes * channels, size)]

    def convolve(source: str, name: str, c: int, o: int, w: _Window, g: int, m: int, p: int, at: Sequence[int]) -> None:
        k = math.prod(w.kernel) * c // g
        tensors[f"{name}.weight"] = pack_rows(rng.random((m, o, k)) < 0.5)
        arguments = {
            "bits": Value(value=source),
            "weight": Constant(tensor=f"{name}.weight"),
            "in_channels": c,
            "kernel": w.kernel,
            "stride": w.stride,
            "padding": w.padding,
            "dilation": w.dilation,
            "groups": g,
            "pad_bit": draw(st.sampled_from(["zero", "one"])),
        }
        made = _spec(name, "int32", p * m * o, *w.out(at))
        nodes.append(Node(op="bnnconvert.binary_conv2d", arguments=arguments, outputs=(made,)))

    convolve("bits", "acc", channels, outputs, window, groups, weight_planes, planes, size)
    last, sums, out = "acc", planes * weight_planes, window.out(size)
    if sums == 1 and draw(st.booleans()):
        k = math.prod(window.kernel) * per_group
        thresholds = np.sort(rng.integers(-k - 1, k + 2, (1, outputs, draw(st.integers(1, 2)))).astype(np.int32), -1)
        thresholds[0, rng.integers(outputs), -1] = NONE
        tensors |= {"limits": thresholds, "falls": rng.random((1, outputs)) < 0.5}
        nodes.append(_encode("acc", "more", tensors, "limits", "falls", outputs, out))
        convolve("more", "second", outputs, draw(st.sampled_from([3, 16, 20])), _SAME, 1, 1, 1, out)
        last, outputs = "second", len(tensors["second.weight"][0])
    # Powers of two, so that a fused sum rounds as an unfused one does.
    tensors["scale"] = (2.0 ** rng.integers(-2, 3, (sums if last == "acc" else 1, outputs))).astype(np.float32)
    arguments = {"acc": Value(value=last), "scale": Constant(tensor="scale"), "bias": None, "axis": 1}
    nodes.append(Node(op="bnnconvert.affine", arguments=arguments, outputs=(_spec("y", "float32", outputs, *out),)))
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, *size), dtype=np.float32)
    x.flat[: x.size : 7] = tensors["thresholds"].flat[0]  # some exactly at a threshold
    program = Program(
        inputs=(_spec("x", "float32", channels, *size),), nodes=tuple(nodes), output=Output(kind="value", value="y")
    )
    return Case(program, tensors, x)


@st.composite
def int8_networks(draw: st.DrawFn) -> Case:
    """quantize, convolution or linear layer, affine."""
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * 4 * draw(st.integers(1, 9)) if groups > 1 else draw(st.sampled_from(CHANNELS))
    outputs = groups * draw(st.sampled_from(OUTPUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    window, is_linear = draw(windows()), groups == 1 and draw(st.booleans())
    size: tuple[int, ...] = ()
    if not is_linear:
        size = draw(st.tuples(st.integers(1, 9), st.integers(1, 20)).filter(lambda s: min(window.out(s)) >= 1))
    kernel = () if is_linear else window.kernel
    weight = rng.integers(-127, 128, (outputs, channels // groups, *kernel), dtype=np.int8)
    tensors: dict[str, Array] = {
        "weight": weight,
        # Powers of two, so that a fused sum rounds as an unfused one does.
        "scale": (2.0 ** rng.integers(-9, -3, (1, outputs))).astype(np.float32),
        "bias": rng.integers(-9, 10, outputs).astype(np.float32),
    }
    places = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    out = () if is_linear else window.out(size)
    nodes = (
        Node(
            op="bnnconvert.quantize",
            arguments={"x": Value(value="x"), "factor": draw(st.sampled_from([1.0, 30.5, 127.0]))},
            outputs=(_spec("q", "int8", channels, *size),),
        ),
        Node(
            op="bnnconvert.int8_linear" if is_linear else "bnnconvert.int8_conv2d",
            arguments={"x": Value(value="q"), "weight": Constant(tensor="weight")} | ({} if is_linear else places),
            outputs=(_spec("acc", "int32", outputs, *out),),
        ),
        Node(
            op="bnnconvert.affine",
            arguments={
                "acc": Value(value="acc"),
                "scale": Constant(tensor="scale"),
                "bias": Constant(tensor="bias"),
                "axis": 1,
            },
            outputs=(_spec("y", "float32", outputs, *out),),
        ),
    )
    x = (3 * rng.standard_normal((draw(st.integers(1, 3)), channels, *size))).astype(np.float32)
    inputs = (_spec("x", "float32", channels, *size),)
    return Case(Program(inputs=inputs, nodes=nodes, output=Output(kind="value", value="y")), tensors, x)


@st.composite
def signed_networks(draw: st.DrawFn) -> Case:
    """A convolution or linear layer of floats with ±1 weights, affine."""
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.sampled_from([c for c in CHANNELS if groups == 1 or c < 40]))
    outputs = groups * draw(st.sampled_from(OUTPUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    window, is_linear = draw(windows()), groups == 1 and draw(st.booleans())
    size: tuple[int, ...] = ()
    if not is_linear:
        size = draw(st.tuples(st.integers(1, 9), st.integers(1, 20)).filter(lambda s: min(window.out(s)) >= 1))
    k = channels // groups * (1 if is_linear else math.prod(window.kernel))
    tensors: dict[str, Array] = {
        "weight": pack_rows(rng.random((1, outputs, k)) < 0.5),
        "scale": rng.random((1, outputs), np.float32) + 0.5,
    }
    places: dict[str, Argument] = {"in_features": channels}
    if not is_linear:
        places = {
            "in_channels": channels,
            "kernel": window.kernel,
            "stride": window.stride,
            "padding": window.padding,
            "dilation": window.dilation,
            "groups": groups,
            "pad_bit": draw(st.sampled_from(["zero", "one"])),
        }
    out = () if is_linear else window.out(size)
    nodes = (
        Node(
            op="bnnconvert.signed_linear" if is_linear else "bnnconvert.signed_conv2d",
            arguments={"x": Value(value="x"), "weight": Constant(tensor="weight"), **places},
            outputs=(_spec("acc", "float32", outputs, *out),),
        ),
        Node(
            op="bnnconvert.affine",
            arguments={"acc": Value(value="acc"), "scale": Constant(tensor="scale"), "bias": None, "axis": 1},
            outputs=(_spec("y", "float32", outputs, *out),),
        ),
    )
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, *size), np.float32)
    inputs = (_spec("x", "float32", channels, *size),)
    return Case(Program(inputs=inputs, nodes=nodes, output=Output(kind="value", value="y")), tensors, x)


@st.composite
def masked_networks(draw: st.DrawFn) -> Case:
    """A convolution or linear layer of floats under a mask of what its input's first channels are, then a clamp."""
    channels, outputs = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from(OUTPUTS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    window, is_linear = draw(windows()), draw(st.booleans())
    size: tuple[int, ...] = ()
    if not is_linear:
        size = draw(st.tuples(st.integers(1, 9), st.integers(1, 20)).filter(lambda s: min(window.out(s)) >= 1))
    kernel = () if is_linear else window.kernel
    k = channels * math.prod(kernel)
    level = draw(st.sampled_from([0, k, -k - 1, k + 1]))
    tensors: dict[str, Array] = {
        "thresholds": np.zeros((1, 1, 1), np.float32),
        "start": np.zeros((1, 1), np.bool_),
        "signs": pack_rows(rng.random((1, outputs, k)) < 0.5),
        "limits": np.where(rng.random((1, outputs, 1)) < 0.2, level, 0).astype(np.int32),
        "falls": rng.random((1, outputs)) < 0.1,
        "weight": rng.standard_normal((outputs, channels, *kernel)).astype(np.float32),
        "bias": rng.standard_normal(outputs).astype(np.float32),
    }
    places: dict[str, Argument] = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
    bit_places: dict[str, Argument] = {"in_features": channels}
    if not is_linear:
        bit_places = {"in_channels": channels, "kernel": kernel, **places, "groups": 1, "pad_bit": "one"}
    out, form = (() if is_linear else window.out(size)), "linear" if is_linear else "conv2d"
    signs = {"bits": Value(value="bits"), "weight": Constant(tensor="signs"), **bit_places}
    operands = {"x": Value(value="x"), "mask": Value(value="mask")}
    operands |= {name: Constant(tensor=name) for name in ("weight", "bias")}
    nodes = (
        _encode("x", "bits", tensors, "thresholds", "start", channels, size),
        Node(op=f"bnnconvert.binary_{form}", arguments=signs, outputs=(_spec("acc", "int32", outputs, *out),)),
        _encode("acc", "mask", tensors, "limits", "falls", outputs, out),
        Node(
            op=f"bnnconvert.masked_{form}",
            arguments=operands | ({} if is_linear else {**places, "groups": 1}),
            outputs=(_spec("z", "float32", outputs, *out),),
        ),
        Node(
            op="aten.relu.default",
            arguments={"self": Value(value="z")},
            outputs=(_spec("y", "float32", outputs, *out),),
        ),
    )
    x = rng.standard_normal((draw(st.integers(1, 3)), channels, *size), np.float32)
    inputs = (_spec("x", "float32", channels, *size),)
    return Case(Program(inputs=inputs, nodes=nodes, output=Output(kind="value", value="y")), tensors, x)


def _encode(
    x: str, name: str, tensors: dict[str, Array], thresholds: str, start: str, channels: int, size: Sequence[int]
) -> Node:
    arguments = {"x": Value(value=x), "thresholds": Constant(tensor=thresholds), "start": Constant(tensor=start)}
    return Node(op="bnnconvert.encode", arguments=arguments, outputs=(_spec(name, "bool", channels, *size),))


class _Module(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"t{number}", tensor)
        self.count = len(tensors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *(getattr(self, f"t{number}") for number in range(self.count)))


def program_of(function: Callable[..., torch.Tensor], x: torch.Tensor, *tensors: torch.Tensor) -> Case:
    """A torch function of an input and some constants as a program."""
    program, stored = lower(trace(_Module(function, tensors), (x,)), x)
    return Case(program, dict(stored), x.numpy())


def node_program(op: str, x: torch.Tensor, arguments: dict[str, Argument], shape: tuple[int, ...]) -> Case:
    """One node on an input."""
    node = Node(op=op, arguments={"self": Value(value="x"), **arguments}, outputs=(_spec("y", "float32", *shape),))
    program = Program(
        inputs=(_spec("x", "float32", *x.shape[1:]),), nodes=(node,), output=Output(kind="value", value="y")
    )
    return Case(program, {}, x.numpy())
