"""How near the binary layers of a ResNet come to what the core can do: 3x3 convolutions, bits to bits.

python examples/engine_speed.py [--isa avx2] [--rounds 20] [--json]

The bound is XOR, popcount and add on registers alone, measured in the same rounds; tiles that save carries may pass it.
Pin the process to one core (taskset -c 1) for figures that repeat.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bnnconvert
from bnnconvert.report.table import Column, Table, number
from bnnconvert.runtime import Session, native

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels and size: 115.6 million multiply-adds each."""
MEASURED = "4"
"""The second of three binary layers: bits come in and bits go out."""


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", help="instruction set; default: the best one")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ[native.ISA] = arguments.isa
    torch.manual_seed(0)
    isa = native.chosen_isa()
    with tempfile.TemporaryDirectory() as folder:
        sessions = [session_of(channels, size, Path(folder)) for channels, size in LAYERS]
    inputs = [np.random.default_rng(0).standard_normal(s.input_shape, np.float32) for s in sessions]
    bounds: list[float] = []
    seconds: list[list[float]] = [[] for _ in LAYERS]
    tiles = [""] * len(LAYERS)
    for _ in range(arguments.rounds):
        bounds.append(native.peak(isa))
        for index, (session, x) in enumerate(zip(sessions, inputs, strict=True)):
            session.run(x)
            (step,) = (s for s in session.measure(x) if s.layer == MEASURED)
            seconds[index].append(step.seconds)
            tiles[index] = step.tile
    bound = statistics.median(bounds)
    rows = []
    for (channels, size), times, tile in zip(LAYERS, seconds, tiles, strict=True):
        median = statistics.median(times)
        rate = channels * channels * 9 * size * size / median
        rows.append(
            {"layer": f"{channels} at {size}x{size}", "us": median * 1e6, "of_bound": rate / bound, "tile": tile}
        )
    if arguments.json:
        print(json.dumps({"isa": isa, "bound": bound, "layers": rows}, indent=2))
        return
    columns = (Column("3x3 layer"), number("us"), number("of the bound"), Column("tile"))
    cells = tuple((r["layer"], f"{r['us']:.1f}", f"{100 * r['of_bound']:.0f} %", r["tile"]) for r in rows)
    print(f"{isa}: the bound is {bound / 1e9:.0f} billion multiply-adds a second.\n")
    print(Table("", columns, cells).markdown())


if __name__ == "__main__":
    main()
