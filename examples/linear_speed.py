"""Linear layers, one thread: binary with packed input, or with --recipe bwn 1-bit weights and float input.

python examples/linear_speed.py [--recipe xnor] [--rounds 20] [--json]

Ours is a session's step, so its sums leave as floats, scaled. Where bnn-lab is installed (pip install bnn-lab==1.0.0),
its packed product runs the same shapes in the same rounds, and torch its float product.
Pin the process to one core (taskset -c 1) for figures that repeat.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import bnnconvert
from bnnconvert.bench.turns import turn
from bnnconvert.report.table import Column, Table, number
from bnnconvert.runtime import Session

SHAPES = ((128, 2048, 2048), (64, 4096, 4096), (32, 8192, 8192), (1, 4096, 4096))
"""Rows, inputs and outputs."""
MEASURED = "2"
TURN = 0.03
"""Seconds."""


def ours(recipe: str, rows: int, inputs: int, outputs: int, folder: Path) -> Callable[[], float]:
    """The middle layer of three."""
    net = nn.Sequential(
        nn.Linear(8, inputs), nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs, bias=False), nn.Linear(outputs, 1)
    )
    path = folder / f"{inputs}.packed.safetensors"
    bnnconvert.export(bnnconvert.convert(net.eval(), recipe, input_shape=(1, 8)), path)
    session = Session(path)
    x = np.random.default_rng(0).standard_normal((rows, 8), np.float32)

    def run() -> float:
        (step,) = (s for s in session.measure(x) if s.layer == MEASURED)
        return step.seconds

    return run


def in_torch(rows: int, inputs: int, outputs: int) -> Callable[[], float]:
    """The float product."""
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)

    def run() -> float:
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        return time.perf_counter() - start

    return run


def in_bnn_lab(rows: int, inputs: int, outputs: int) -> Callable[[], float]:
    """The packed product of bnn-lab."""
    from bnn.kernels import packed

    packed.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, _ = packed.pack_binary_pm1(np.where(rng.random((rows, inputs)) < 0.5, -1, 1).astype(np.float32))
    weight, _ = packed.pack_binary_pm1(np.where(rng.random((outputs, inputs)) < 0.5, -1, 1).astype(np.float32))

    def run() -> float:
        start = time.perf_counter()
        packed.binary_gemm_native_prepacked(x, weight, inputs)
        return time.perf_counter() - start

    return run


def main(line: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="xnor")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(line)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    has_peer = importlib.util.find_spec("bnn") is not None and arguments.recipe != "bwn"
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            runs = {"ours": ours(arguments.recipe, *shape, Path(folder)), "torch fp32": in_torch(*shape)}
            if has_peer:
                runs["bnn-lab"] = in_bnn_lab(*shape)
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    times[name] += turn(run, TURN)
            results.append({"shape": shape, "us": {name: 1e6 * statistics.median(t) for name, t in times.items()}})
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    peers = [name for name in results[0]["us"] if name != "ours"]
    columns = [Column("rows x inputs x outputs"), number("us")]
    columns += [number(f"{name} {what}") for name in peers for what in ("us", "times")]
    cells = []
    for found in results:
        times_of = found["us"]
        cell = [" x ".join(map(str, found["shape"])), f"{times_of['ours']:.0f}"]
        for name in peers:
            cell += [f"{times_of[name]:.0f}", f"{times_of[name] / times_of['ours']:.2f}"]
        cells.append(tuple(cell))
    print(Table("", tuple(columns), tuple(cells)).markdown())


if __name__ == "__main__":
    main()
