"""Peers in turn, so that whatever else the machine does hits all of them alike."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnnconvert.bench.peers.base import Files, LayerTime
from bnnconvert.values.report import PeerTime

PATIENCE = 600.0
"""Seconds until a peer that does not answer is given up; compiling or quantizing a large network takes minutes."""
TURN = 0.1
"""Seconds of a peer's turn; it takes all that time, so that each finds the processor in its own steady state."""
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
    difference: float | None = None
    """From the float original, in units of its largest magnitude."""
    failure: str | None = None
    seconds: list[float] = field(default_factory=list)
    layers: list[list[LayerTime]] = field(default_factory=list)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for the answer; a process that died answers with how."""
        if self.failure is not None:
            return {}
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        with suppress(BrokenPipeError), self.process:  # closes the pipes, which may hold a command, and waits
            pass

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            self.process.kill()

        watch = threading.Timer(PATIENCE, give_up)
        watch.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        code = self.process.wait()
        self.failure = f"it did not answer for {PATIENCE:.0f} seconds" if is_late.is_set() else _death(code)
        return {}

    def compare(self, files: Files) -> None:
        """Compare its output with the float original's, if that is what it runs; a peer that is off is not timed."""
        if self.failure is not None or not self.runs_float:
            return
        output, reference = np.load(files.output(self.name)), np.load(files.reference)
        scale = max(float(np.abs(reference).max(initial=0)), 1e-12)
        self.difference = float(np.abs(output - reference).max(initial=0)) / scale
        if not self.difference <= self.tolerance:
            self.failure = f"its output is {self.difference:.2g} of the largest magnitude off torch's"

    def time(self) -> PeerTime:
        """What its runs come to."""
        if self.failure is not None or len(self.seconds) < 2:
            return PeerTime(self.name, self.title, None, None, self.difference, self.failure or "it gave no times")
        quarters = statistics.quantiles(self.seconds, n=4)
        median = statistics.median(self.seconds)
        return PeerTime(self.name, self.title, median, (quarters[2] - quarters[0]) / 2, self.difference, None)


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
            workers[-1].compare(files)
            if progress is not None:
                progress(number + 1, len(names) + rounds)
        for turn in range(rounds):
            for worker in workers:
                worker.seconds += worker.ask({"run": TURN}).get("seconds", [])
                found = worker.ask({"layers": True}).get("layers", [])
                worker.layers.append([LayerTime(**layer) for layer in found])
            if progress is not None:
                progress(len(names) + turn + 1, len(names) + rounds)
        return [worker.time() for worker in workers], {worker.name: _medians(worker.layers) for worker in workers}


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
        # -P: not what happens to lie in the current folder.
        command = [sys.executable, "-P", "-m", "bnnconvert.bench.worker", self.name, str(self.files.folder), count]
        with open(self.files.folder / f"{self.name}.log", "w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        worker = Worker(self.name, process, self.name)
        try:
            hello = worker.answer()
        except BaseException:
            worker.close()
            raise
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


def _medians(turns: list[list[LayerTime]]) -> list[LayerTime]:
    """Each layer's median; a turn that was cut short is left out."""
    whole = [turn for turn in turns if len(turn) == max(map(len, turns))]
    return [
        LayerTime(times[0].layer, times[0].how, statistics.median(time.seconds for time in times))
        for times in zip(*whole, strict=True)
    ]
