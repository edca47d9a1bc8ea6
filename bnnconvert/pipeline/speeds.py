"""Time of packed files beside their float model, in one process and in turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from bnnconvert.bench.turns import turn
from bnnconvert.runtime import Session
from bnnconvert.values.data import Data
from bnnconvert.values.inputs import as_tuple

TURN, TURNS = 0.05, 20
"""Seconds of a turn, and how many each has."""


def speeds(original: nn.Module, packed: Mapping[str, Path], data: Data) -> tuple[float, dict[str, float]]:
    """Median time of the float model in torch, and of each packed file that exists; one sample, one thread.

    Units: milliseconds.
    """
    given = as_tuple(data.inputs(data.train, torch.arange(1)))
    arrays, original = [x.numpy() for x in given], original.cpu().eval()
    sessions = {name: Session(path) for name, path in packed.items() if path.exists()}
    runs: list[Callable[[], object]] = [lambda: original(*given)]
    runs += [lambda session=session: session.run(*arrays) for session in sessions.values()]  # type: ignore[misc]
    times: list[list[float]] = [[] for _ in runs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(TURNS):
                for run, found in zip(runs, times, strict=True):
                    found += turn(_clocked(run), TURN)
    finally:
        torch.set_num_threads(threads)
    own, *others = (1000 * statistics.median(found) for found in times)
    return own, dict(zip(sessions, others, strict=True))


def _clocked(run: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed
