"""Peers in turn, so that whatever else the machine does hits all of them alike."""

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnnconvert.bench.peers.base import Array, Files, LayerTime
from bnnconvert.values.report import PeerTime

RUNS = 3
"""Timed runs of a peer in one turn, behind one that is not counted."""
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Environment for a second try after an illegal instruction: virtual machines may announce AMX and not allow it."""


@dataclass
class Worker:
    """A peer's process."""

    name: str
    process: subprocess.Popen[str]
    title: str
    runs_float: bool = True
    tolerance: float = 0.0
    failure: str | None = None
    seconds: list[float] = field(default_factory=list)
    layers: list[list[LayerTime]] = field(default_factory=list)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for the answer; a process that died answers with how."""
        if self.failure is not None:
            return {}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        with self.process:  # closes the pipes and waits
            pass

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.failure = _death(self.process.wait())
        return {}

    def time(self, files: Files, reference: Array | None) -> PeerTime:
        """What its runs come to; `reference` is what the float original gives."""
        difference = None
        if self.failure is None and self.runs_float and reference is not None:
            output = _output(files, self.name)
            assert output is not None
            scale = max(float(np.abs(reference).max(initial=0)), 1e-12)
            difference = float(np.abs(output - reference).max(initial=0)) / scale
            if not difference <= self.tolerance:
                self.failure = f"its output is {difference:.2g} of the largest magnitude off torch's"
        if self.failure is not None or len(self.seconds) < 2:
            return PeerTime(self.name, self.title, None, None, difference, self.failure or "it gave no times")
        quarters = statistics.quantiles(self.seconds, n=4)
        median = statistics.median(self.seconds)
        return PeerTime(self.name, self.title, median, (quarters[2] - quarters[0]) / 2, difference, None)


def compete(
    files: Files,
    names: Sequence[str],
    *,
    threads: int,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PeerTime], dict[str, list[LayerTime]]]:
    """Time the peers; their times in the order of `names`, and the layers of those that can tell.

    A layer's time is the median over the rounds.
    """
    with ExitStack() as stack:
        workers = []
        for number, name in enumerate(names):
            workers.append(stack.enter_context(_Open(name, files, threads)))
            if progress is not None:
                progress(number + 1, len(names) + rounds)
        for turn in range(rounds):
            for worker in workers:
                worker.seconds += worker.ask({"run": 1 + RUNS}).get("seconds", [])[1:]
                found = worker.ask({"layers": True}).get("layers", [])
                worker.layers.append([LayerTime(**layer) for layer in found])
            if progress is not None:
                progress(len(names) + turn + 1, len(names) + rounds)
        reference = _output(files, "torch")
        times = [worker.time(files, reference) for worker in workers]
        return times, {worker.name: _medians(worker.layers) for worker in workers}


class _Open:
    """A worker for as long as a contest lasts."""

    def __init__(self, name: str, files: Files, threads: int) -> None:
        self.name, self.files, self.threads = name, files, threads

    def __enter__(self) -> Worker:
        self.worker = self._start({})
        if self.worker.failure == _death(-signal.SIGILL):
            self.worker.close()
            self.worker = self._start(NO_AMX)
            self.worker.title += " without AMX"
        return self.worker

    def __exit__(self, *_: object) -> None:
        self.worker.close()

    def _start(self, extra: dict[str, str]) -> Worker:
        count = str(self.threads)
        # The worker finds what this process finds, wherever it was started.
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count} | paths | extra
        command = [sys.executable, "-m", "bnnconvert.bench.worker", self.name, str(self.files.folder), count]
        with open(self.files.folder / f"{self.name}.log", "w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        worker = Worker(self.name, process, self.name)
        hello = worker.answer()
        if "title" in hello:
            worker.title, worker.runs_float = hello["title"], hello["runs_float"]
            worker.tolerance = hello["tolerance"]
        elif "missing" in hello:
            worker.failure = f"{hello['missing']} is not installed"
        elif "error" in hello:
            worker.failure = hello["error"]
        return worker


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    reason = signal.strsignal(-code) or f"signal {-code}"
    return f"its process was stopped: {reason.lower()}"


def _output(files: Files, name: str) -> Array | None:
    path = files.output(name)
    if not path.exists():
        return None
    found: Array = np.load(path)
    return found


def _medians(turns: list[list[LayerTime]]) -> list[LayerTime]:
    """Each layer's median; a turn that was cut short is left out."""
    whole = [turn for turn in turns if len(turn) == max(map(len, turns))]
    return [
        LayerTime(times[0].layer, times[0].how, statistics.median(time.seconds for time in times))
        for times in zip(*whole, strict=True)
    ]
