"""Time an artifact, beside its float original in the runtimes that are installed."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bnnconvert.bench.contest import compete
from bnnconvert.bench.peers import PEERS
from bnnconvert.bench.peers.base import Array, Files, LayerTime
from bnnconvert.bench.peers.torch_eager import first_output
from bnnconvert.errors import UsageError, first_line
from bnnconvert.pipeline.student import Student
from bnnconvert.pipeline.targets import Target, open_target
from bnnconvert.runtime import Session
from bnnconvert.values.report import BenchLayer, BenchReport

OURS, FLOAT = "bnnconvert", "torch"
BINARY = ("binary", "signs")
"""Kernels of binary layers."""


def bench(
    artifact: str | Path,
    against: Target | None = None,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    peers: Sequence[str] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> BenchReport:
    """Time an artifact; with a run or a model also the float original in every peer that is installed, or in `peers`.

    Each runtime has a process of its own, and they take turns. Outputs are compared first.

    Raises: UsageError, RefusalError, ArtifactError, VerificationError.
    """
    names = _names(peers, has_original=against is not None)
    session = Session(artifact, threads=threads)
    golden = session.golden_difference()
    specs, golden_inputs = session.program.inputs, session.artifact.golden_inputs
    inputs = [np.resize(x, spec.sized(batch)) for x, spec in zip(golden_inputs, specs, strict=True)]
    with tempfile.TemporaryDirectory(prefix="bnnconvert-bench-") as folder:
        files = Files(Path(folder))
        shutil.copyfile(artifact, files.artifact)
        np.savez(files.inputs, *inputs)
        if against is not None:
            _export(_original(against, model, trust_pickle), inputs, files, where=str(against))
        times, layers = compete(files, names, threads=threads, rounds=rounds, progress=progress)
    return BenchReport(str(artifact), session.isa, threads, batch, rounds, golden, tuple(times), _beside(layers))


def _names(peers: Sequence[str] | None, *, has_original: bool) -> list[str]:
    if peers is None:
        return list(PEERS) if has_original else [OURS]
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise UsageError(f"{unknown[0]}: is no peer; there are {', '.join(PEERS)}.")
    if not has_original and set(peers) != {OURS}:
        raise UsageError("Peers run the float original; give its run or model with --against.")
    return [OURS, *(name for name in PEERS if name in peers and name != OURS)]


def _original(against: Target, model: str | None, trust_pickle: bool) -> nn.Module:
    opened = open_target(against, model=model, trust_pickle=trust_pickle)
    if isinstance(opened, Session):
        raise UsageError(f"{against}: is an artifact; give the run or the float model that it came from.")
    return (opened.teacher if isinstance(opened, Student) else opened).eval()


def _export(module: nn.Module, inputs: Sequence[Array], files: Files, *, where: str) -> None:
    given = tuple(map(torch.from_numpy, inputs))
    try:
        with torch.no_grad():
            torch.export.save(torch.export.export(module, given, strict=False), files.exported)
            np.save(files.reference, first_output(module(*given)))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise UsageError(
            f"{where}: torch.export cannot save it for other runtimes ({first_line(error)[:300]}); leave out --against."
        ) from error


def _beside(layers: dict[str, list[LayerTime]]) -> tuple[BenchLayer, ...]:
    """Our layers, each with all of its steps and with the same one of the float original."""
    floats: dict[str, float] = {}
    for layer in layers.get(FLOAT, []):
        floats[layer.layer] = floats.get(layer.layer, 0.0) + layer.seconds
    steps: dict[str, list[LayerTime]] = {}
    for step in layers.get(OURS, []):
        steps.setdefault(step.layer, []).append(step)
    return tuple(
        BenchLayer(
            name=name,
            how=", ".join(dict.fromkeys(step.how for step in ours)),
            is_binary=any(step.how.startswith(BINARY) for step in ours),
            seconds=sum(step.seconds for step in ours),
            float_seconds=floats.get(name),
        )
        for name, ours in steps.items()
    )
