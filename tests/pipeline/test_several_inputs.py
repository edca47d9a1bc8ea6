"""Models that take several inputs, some of them integers: converted, exported, verified, run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import Session, pipeline
from bnnconvert.errors import UsageError
from bnnconvert.values.inputs import InputSpec
from tests.networks import randomise


class Matcher(nn.Module):
    """Two images that meet in one trunk, and names of what they show."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body, self.body_norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.names, self.head = nn.Embedding(7, 16), nn.Linear(16, 5)

    def forward(self, first: Tensor, second: Tensor, name: Tensor) -> Tensor:
        both = self.norm(self.left(first) + self.right(second)).relu()
        return self.head(self.body_norm(self.body(both)).relu().mean((2, 3)) + self.names(name).mean(1))


def matcher() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Matcher())


IMAGE, NAME = InputSpec(shape=(1, 3, 8, 8)), InputSpec(shape=(1, 2), dtype="int64", below=7)
EXAMPLE = (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([[0, 6], [1, 3]]))
SPEC = "tests.pipeline.test_several_inputs:matcher"


def test_an_example_says_what_the_inputs_are() -> None:
    student = bnnconvert.convert(matcher(), "xnor", example_inputs=EXAMPLE)
    assert student.inputs == (IMAGE, IMAGE, NAME)
    assert {p.facts.path for p in student.plan.layers if p.decision == "binary"} == {"body"}
    assert student.plan.predicted_bytes is not None


@pytest.fixture
def run_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    student = pipeline.convert_model(SPEC, "xnor", input_shape=(IMAGE, IMAGE, NAME))
    assert student.run is not None
    report = pipeline.export(pipeline.open_run(student.run.path))
    return student.run.path, Path(report.path)


def test_a_packed_file_takes_what_the_model_takes(run_and_file: tuple[Path, Path]) -> None:
    run, file = run_and_file
    session, student = Session(file), pipeline.open_run(run).model.eval()
    with torch.no_grad():
        expected = student(*EXAMPLE)
    np.testing.assert_allclose(session.run(*(x.numpy() for x in EXAMPLE)), expected.numpy(), rtol=1e-4, atol=1e-5)
    swapped = session.run(*(EXAMPLE[i].numpy() for i in (1, 0, 2)))
    assert np.abs(swapped - expected.numpy()).max() > 1e-2
    report = pipeline.verify(file, against=run, samples=20)
    assert report.samples == 20
    assert report.passed
    assert [spec["dtype"] for spec in pipeline.inspect(str(file)).summary["inputs"]] == ["float32", "float32", "int64"]


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ((0, 1), "first, second, name, and 2 were given"),
        ((0, 1, 1), "must be int64"),
        ((0, 2, 2), "input 'second' is int64"),
    ],
)
def test_other_inputs_are_refused(run_and_file: tuple[Path, Path], chosen: tuple[int, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Session(run_and_file[1]).run(*(EXAMPLE[i].numpy() for i in chosen))


def test_inputs_of_different_numbers_of_samples_are_refused(run_and_file: tuple[Path, Path]) -> None:
    first, second, name = (x.numpy() for x in EXAMPLE)
    with pytest.raises(UsageError, match="first 2, second 1, name 2"):
        Session(run_and_file[1]).run(first, second[:1], name)


def test_bench_says_that_it_times_models_of_one_input(run_and_file: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="several inputs"):
        pipeline.bench(run_and_file[1])


def test_shapes_of_several_inputs_cannot_be_guessed() -> None:
    with pytest.raises(UsageError, match=r"takes 3 inputs \(first, second, name\).*--input-shape"):
        bnnconvert.convert(matcher(), "xnor")


def test_an_exported_program_knows_its_inputs(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(matcher(), EXAMPLE, dynamic_shapes=({0: batch},) * 3)
    torch.export.save(program, tmp_path / "model.pt2")
    student = pipeline.convert_model(str(tmp_path / "model.pt2"), "xnor", out=tmp_path / "model.bnn", dry_run=True)
    assert [(i.shape, i.dtype) for i in student.inputs] == [(i.shape, i.dtype) for i in (IMAGE, IMAGE, NAME)]
