"""A binary ResNet-18 at 224x224, batch 1, beside its float original in other runtimes.

python examples/resnet18_speed.py [--rounds 20] [--peers NAME,...] [--json]

The network is untrained, which changes no time: batch norms get random statistics, so that signs go both ways, and the
8-bit ends are calibrated on noise. Pin the process to one core (taskset -c 1) for figures that repeat; the row with two
threads is then left out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from resnet18 import resnet18
from torch import nn

import bnnconvert
from bnnconvert.pipeline import bench
from bnnconvert.report.table import Column, Table, number
from bnnconvert.runtime import Session
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.report import BenchLayer, BenchReport

SHAPE = (3, 224, 224)
VARIANTS = (("bireal", "float"), ("bireal", "int8"), ("xnor", "int8"), ("bnn", "float"))
"""Recipe, and how the float layers at the ends are stored."""
PEERS = ("onnxruntime", "openvino", "openvino-bf16", "openvino-int8")


@dataclass(frozen=True)
class Row:
    """One artifact's figures. Units: seconds."""

    name: str
    seconds: float
    spread: float
    peers: dict[str, float]
    """The float original in other runtimes."""
    failures: dict[str, str]
    parts: dict[str, float]
    """Where our time goes, by the engine's own profile."""


def network() -> nn.Module:
    """ResNet-18 whose batch norms have plausible statistics."""
    torch.manual_seed(0)
    net = resnet18().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return net


def noise(samples: int = 32) -> Data:
    """Images of nothing, to calibrate on."""
    pixels = torch.randint(0, 256, (samples, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(samples))
    return Data(images, images, None, specs_of((1, *SHAPE)), "uint8", (0.5,) * 3, (0.25,) * 3, "noise")


def part_of(layer: BenchLayer) -> str:
    """The part of a ResNet that a layer belongs to."""
    if layer.name in ("conv1", "maxpool"):
        return "7x7 stem and max pool"
    if layer.is_binary and layer.name.startswith("layer"):
        return "binary 3x3 layers"
    if layer.name.startswith("layer"):
        return "shortcuts: average pools, 1x1 convolutions"
    return "input, classifier, output"


def parts_of(layers: Sequence[BenchLayer]) -> dict[str, float]:
    """Seconds of each part."""
    parts: dict[str, float] = {}
    for layer in layers:
        parts[part_of(layer)] = parts.get(part_of(layer), 0.0) + layer.seconds
    return parts


def row_of(name: str, report: BenchReport) -> Row:
    """What the table shows of a bench report."""
    ours, *others = report.peers
    assert ours.median is not None
    assert ours.spread is not None
    return Row(
        name,
        ours.median,
        ours.spread,
        {peer.name: peer.median for peer in others if peer.median is not None},
        {peer.name: peer.failure for peer in others if peer.failure is not None},
        parts_of(report.layers),
    )


def gain_of_two_threads(path: Path, rounds: int) -> float:
    """How much quicker two threads are than one, in turns."""
    sessions = {threads: Session(path, threads=threads) for threads in (1, 2)}
    times: dict[int, list[float]] = {1: [], 2: []}
    x = sessions[1].artifact.golden_inputs[0]
    for _ in range(2 * rounds):
        for threads, session in sessions.items():
            session.run(x)
            start = time.perf_counter()
            session.run(x)
            times[threads].append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[2])


def time_to_open(path: Path, rounds: int) -> float:
    """Median seconds until a session is ready."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        Session(path)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(rows: list[Row]) -> Table:
    """One row per artifact."""
    columns = [Column("ResNet-18"), number("ms"), *(number(f"{name} ms") for name in PEERS)]
    columns += [number("times onnxruntime"), number("times openvino-int8")]
    cells = []
    for row in rows:
        peers = [f"{1000 * row.peers[name]:.2f}" if name in row.peers else "" for name in PEERS]
        ratios = [
            f"{row.peers[name] / row.seconds:.2f}" if name in row.peers else ""
            for name in ("onnxruntime", "openvino-int8")
        ]
        cells.append((row.name, f"{1000 * row.seconds:.2f} ± {1000 * row.spread:.2f}", *peers, *ratios))
    return Table("", tuple(columns), tuple(cells))


def parts_table(rows: list[Row]) -> Table:
    """Where the time goes: one row per part."""
    names = dict.fromkeys(part for row in rows for part in row.parts)
    cells = [(part, *(f"{1000 * row.parts[part]:.2f}" if part in row.parts else "" for row in rows)) for part in names]
    return Table("", (Column("part, ms"), *(number(row.name) for row in rows)), tuple(cells))


def main(line: list[str] | None = None) -> None:
    """Export, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--peers", default=",".join(PEERS), help="names with commas")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(line)
    peers = ("bnnconvert", *filter(None, arguments.peers.split(",")))
    net, data, rows = network(), noise(), []
    gain = None
    with tempfile.TemporaryDirectory() as folder:
        for recipe, edges in VARIANTS:
            path = Path(folder) / f"{recipe}-{edges}.packed.safetensors"
            student = bnnconvert.convert(net, recipe, input_shape=(1, *SHAPE))
            bnnconvert.export(student, path, edges=edges, data=data if edges == "int8" else None)
            name = f"{recipe}, {edges} ends"
            rows.append(row_of(name, bench(path, net, peers=peers, rounds=arguments.rounds)))
        first = Path(folder) / "{}-{}.packed.safetensors".format(*VARIANTS[0])
        opening = time_to_open(first, arguments.rounds)
        if len(os.sched_getaffinity(0)) > 1:
            gain = gain_of_two_threads(first, arguments.rounds)
    if arguments.json:
        figures = {"rows": [vars(row) for row in rows], "opening": opening, "gain_of_two_threads": gain}
        print(json.dumps(figures, indent=2))
        return
    print(table(rows).markdown())
    print(parts_table(rows).markdown())
    for failure in sorted({f"{name}: {why}" for row in rows for name, why in row.failures.items()}):
        print(failure)
    print(f"\nTime to open the first: {1000 * opening:.0f} ms.")
    if gain is not None:
        print(f"Two threads over one: {gain:.2f} times.")


if __name__ == "__main__":
    main()
