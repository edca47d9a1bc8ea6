"""How near the binary layers of a ResNet come to what the core can do: 3x3 convolutions, bits to bits.

python examples/engine_speed.py [--isa avx2] [--rounds 20] [--json]

`a cycle` are multiply-adds. The bound is XOR, popcount and add on registers alone, measured in the same rounds; tiles
that save carries may pass it.
Where openvino is installed, its BinaryConvolution runs the same layers in the same rounds: three in a chain whose
FakeQuantize operations it fuses, the second one's time by its own profile, at one thread.
Pin the process to one core (taskset -c 1) for figures that repeat.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bnnconvert
from bnnconvert.bench.turns import turn
from bnnconvert.report.table import Column, Table, number
from bnnconvert.runtime import Session, native

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels and size: 115.6 million multiply-adds each."""
MEASURED = "4"
"""The second of three binary layers: bits come in and bits go out."""
TURN = 0.03
"""Seconds."""


def network(channels: int) -> nn.Sequential:
    """Three binary layers behind a stem."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 1)]
    for _ in range(3):
        layers += [nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 1)).eval()


def session_of(channels: int, size: int, folder: Path) -> Session:
    """The network as a session."""
    path = folder / f"{channels}.packed.safetensors"
    student = bnnconvert.convert(network(channels), "xnor", input_shape=(1, 3, size, size))
    bnnconvert.export(student, path)
    return Session(path)


class Steps:
    """Runs of a session, each giving the seconds of the second layer."""

    def __init__(self, session: Session, x: np.ndarray) -> None:
        self.session, self.x, self.tile = session, x, ""

    def __call__(self) -> float:
        (step,) = (step for step in self.session.measure(self.x) if step.layer == MEASURED)
        self.tile = step.tile
        return step.seconds


def openvino_layer(channels: int, size: int) -> Callable[[], float]:
    """A run of OpenVINO's chain of three, giving the seconds of the second."""
    import openvino
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    stem = rng.standard_normal((channels, 8, 1, 1), np.float32)
    entry = op.parameter([1, 8, size, size], openvino.Type.f32)
    y = op.convolution(entry, op.constant(stem), [1, 1], [0, 0], [0, 0], [1, 1])
    zeros = np.zeros((1, channels, 1, 1), np.float32)
    names = []
    for _ in range(3):
        thresholds = rng.standard_normal(zeros.shape, np.float32)
        bits = rng.integers(0, 256, channels * channels * 9 // 8, dtype=np.uint8)
        packed = openvino.Tensor(bits, openvino.Shape([channels, channels, 3, 3]), openvino.Type.u1)
        weights = openvino.op.Constant(packed, shared_memory=False)
        # Two levels, 0 and 1: the only form that becomes bits inside the convolution before it.
        y = op.fake_quantize(y, thresholds, thresholds, zeros, zeros + 1, 2)
        y = op.binary_convolution(y, weights, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0)
        names.append(y.get_friendly_name())
    settings = {"INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(openvino.Model([y], [entry]), "CPU", settings).create_infer_request()
    x = rng.standard_normal((1, 8, size, size), np.float32)

    def run() -> float:
        request.infer([x])
        (node,) = (n for n in request.get_profiling_info() if n.node_name == names[1])
        return float(node.real_time.total_seconds())

    return run


def main(line: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", help="instruction set; default: the best one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(line)
    if arguments.isa:
        os.environ[native.ISA] = arguments.isa
    torch.manual_seed(0)
    isa = native.chosen_isa()
    with tempfile.TemporaryDirectory() as folder:
        sessions = [session_of(channels, size, Path(folder)) for channels, size in LAYERS]
    inputs = [np.random.default_rng(0).standard_normal(s.input_shape, np.float32) for s in sessions]
    has_peer = importlib.util.find_spec("openvino") is not None
    peers = [openvino_layer(channels, size) for channels, size in LAYERS] if has_peer else []
    peer_seconds: list[list[float]] = [[] for _ in peers]
    bounds: list[float] = []
    clocks: list[float] = []
    seconds: list[list[float]] = [[] for _ in LAYERS]
    tiles = [""] * len(LAYERS)
    for _ in range(arguments.rounds):
        bounds.append(native.peak(isa))
        clocks.append(native.clock())
        for index, (session, x) in enumerate(zip(sessions, inputs, strict=True)):
            steps = Steps(session, x)
            seconds[index] += turn(steps, TURN)
            tiles[index] = steps.tile
        for times, run in zip(peer_seconds, peers, strict=True):
            times += turn(run, TURN)
    bound = statistics.median(bounds)
    rows = []
    for index, (channels, size) in enumerate(LAYERS):
        median = statistics.median(seconds[index])
        rate = channels * channels * 9 * size * size / median
        peer = statistics.median(peer_seconds[index]) if peers else None
        rows.append(
            {
                "layer": f"{channels} at {size}x{size}",
                "us": median * 1e6,
                "a_cycle": rate / statistics.median(clocks),
                "of_bound": rate / bound,
                "tile": tiles[index],
                "openvino_us": peer and peer * 1e6,
                "ratio": peer and peer / median,
            }
        )
    if arguments.json:
        print(json.dumps({"isa": isa, "bound": bound, "layers": rows}, indent=2))
        return
    columns = [Column("3x3 layer"), number("us"), number("a cycle"), number("of the bound"), Column("tile")]
    cells = [
        (r["layer"], f"{r['us']:.1f}", f"{r['a_cycle']:.0f}", f"{100 * r['of_bound']:.0f} %", r["tile"]) for r in rows
    ]
    if peers:
        columns += [number("OpenVINO us"), number("ratio")]
        cells = [(*c, f"{r['openvino_us']:.1f}", f"{r['ratio']:.2f}") for c, r in zip(cells, rows, strict=True)]
    print(f"{isa}: the bound is {bound / 1e9:.0f} billion multiply-adds a second.\n")
    print(Table("", tuple(columns), tuple(cells)).markdown())


if __name__ == "__main__":
    main()
