import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bnnconvert.tasks import CLASSIFICATION
from bnnconvert.train import evaluate_samples
from bnnconvert.train.engine import has_unused_parameters
from bnnconvert.train.schedule import stage_spans
from bnnconvert.train.views import Views
from tests.train.processes import EXACT, RUNS, joint, margin, plain
from tests.train.toys import STAGES, make_data, make_student, make_training, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes, talking by gloo, have left."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, "-m", "tests.train.processes", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_processes_end_with_the_same_bits_and_the_same_accuracy(two: Path, name: str) -> None:
    first, second = (torch.load(two / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (two / f"{name}-0.json").read_text() == (two / f"{name}-1.json").read_text()


@pytest.mark.parametrize("made", [plain, joint, margin])
def test_two_processes_train_as_one_does(two: Path, made: Callable[[None], tuple[torch.nn.Module, float]]) -> None:
    student, accuracy = made(None)
    state = torch.load(two / f"{made.__name__}-0.pt", weights_only=True)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(
            state[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert json.loads((two / f"{made.__name__}-0.json").read_text()) == accuracy


@pytest.mark.parametrize(("name", "samples", "share"), [("plain", 120, 0.21), ("staged", 125, 0.2)])
def test_padding_samples_are_not_counted(two: Path, name: str, samples: int, share: float) -> None:
    """25 held-out samples over two processes: one comes twice, and must count once."""
    data = make_data(samples=samples)
    held_out = Views.of(data, share, seed=0, device=torch.device("cpu")).held_out
    student = make_student(norm=False, drop=0.0) if name == "plain" else make_student(gain=True)
    student.load_state_dict(torch.load(two / f"{name}-0.pt", weights_only=True))
    measured = evaluate_samples(student.eval(), held_out, data)
    assert measured.samples == 25
    assert json.loads((two / f"{name}-0.json").read_text()) == measured.accuracy


def test_only_the_main_process_writes(two: Path) -> None:
    lines = (two / "staged" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[-1])["train_accuracy"] <= 1


def test_a_run_of_two_processes_goes_on_in_one(two: Path) -> None:
    """A batch is what the recipe says, however many processes share it, so a checkpoint fits any number."""
    student, report = run(
        two / "plain", student=make_student(norm=False, drop=0.0), training=EXACT, max_steps=6, resume=True
    )
    state = torch.load(two / "plain-0.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in student.state_dict().items())
    assert report.steps == 6


def test_unused_parameters_are_found_in_the_stage_that_leaves_them() -> None:
    student, x = make_student(gain=True), torch.randn(2, 3, 8, 8)
    everything = stage_spans(make_training(), 10)
    floats = stage_spans(make_training(stages=[{"share": 0.5, "inputs": False}, STAGES[1] | {"share": 0.5}]), 10)
    assert not has_unused_parameters(student, everything, x, CLASSIFICATION)
    assert has_unused_parameters(student, floats, x, CLASSIFICATION)
    assert student.get_submodule("conv").inputs_are_binary
    assert all(p.grad is None for p in student.parameters())
