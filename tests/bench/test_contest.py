"""Peers in processes of their own: each of the table, a crash that costs one row only, and what is compared."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnnconvert.artifact.writer import write
from bnnconvert.bench import contest
from bnnconvert.bench.contest import Worker, compete
from bnnconvert.bench.peers import PEERS, peer_class
from bnnconvert.bench.peers.base import Files
from tests.sessions import complete
from tests.students import Block, trace

PACKAGES = {
    "bnnconvert": (),
    "torch": ("torch",),
    "torch-compiled": ("torch",),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "onnxruntime-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-bf16": ("onnx", "onnxscript", "openvino"),
    "openvino-int8": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


class Float(nn.Module):
    """A float network with the artifact's input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.manual_seed(0)
    made = Files(tmp_path_factory.mktemp("bench"))
    x = torch.randn(2, 3, 8, 8)
    write(complete(trace(Block()), x), made.artifact)
    np.savez(made.inputs, x.numpy())
    net = Float().eval()
    torch.export.save(torch.export.export(net, (x,), strict=False), made.exported)
    np.save(made.reference, net(x).detach().numpy())
    return made


def test_every_file_has_a_row() -> None:
    folder = Path(importlib.util.find_spec("bnnconvert.bench.peers").submodule_search_locations[0])
    assert {row.split(":")[0] for row in PEERS.values()} == {p.stem for p in folder.glob("*.py")} - {"__init__", "base"}
    assert set(PACKAGES) == set(PEERS)


@pytest.mark.parametrize(
    "name", [*(n for n in PEERS if n != "torch-compiled"), pytest.param("torch-compiled", marks=pytest.mark.slow)]
)
def test_a_peer_runs_or_says_what_is_missing(files: Files, name: str) -> None:
    missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
    (time, reference), layers = compete(files, [name, "torch"], threads=1, rounds=1)
    assert reference.median is not None
    if missing:
        assert time.median is None
        assert time.failure is not None
        assert time.failure.endswith("is not installed")
        return
    assert time.failure is None
    assert time.median is not None
    assert time.median > 0
    kind = peer_class(name)
    assert time.title == kind.title
    if kind.runs_float:
        assert time.difference is not None
        assert time.difference <= kind.tolerance
    assert [layer.layer for layer in layers["torch"]] == ["stem", "fc"]


def test_steps_of_the_artifact_are_told(files: Files) -> None:
    _, layers = compete(files, ["bnnconvert"], threads=1, rounds=2)
    names = [layer.layer for layer in layers["bnnconvert"]]
    assert {"stem", "conv1", "conv2", "fc1", "fc2"} <= set(names)
    assert all(layer.seconds >= 0 for layer in layers["bnnconvert"])


def test_a_peer_whose_output_is_another_gives_no_time(files: Files, tmp_path: Path) -> None:
    other = Files(tmp_path)
    for path in (files.inputs, files.artifact, files.exported):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(other.reference, np.load(files.reference) + 1)
    (failed,), _ = compete(other, ["torch"], threads=1, rounds=1)
    assert failed.median is None
    assert failed.failure is not None
    assert failed.failure.endswith("of the largest magnitude off torch's")


def test_a_peer_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PATIENCE", 0.2)
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeps, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        worker = Worker("x", process, "X")
        assert worker.ask({"run": 1}) == {}
        assert worker.failure == "it did not answer for 0 seconds"


def test_a_death_is_one_row_s_failure() -> None:
    dies = f"import os, signal; os.kill(os.getpid(), {int(signal.SIGILL)})"
    process = subprocess.Popen([sys.executable, "-c", dies], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        worker = Worker("x", process, "X")
        assert worker.answer() == {}
        assert worker.failure == "its process was stopped: illegal instruction"
        assert worker.ask({"run": 1}) == {}
