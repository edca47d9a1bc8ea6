"""Models that take several inputs, some of them integers: converted, exported, verified, run."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import bnnconvert
from bnnconvert import Session, pipeline
from bnnconvert.errors import ArtifactError, RefusalError, UsageError
from bnnconvert.train.diagnose import first_not_finite
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
SPEC, PAIRS = "tests.pipeline.test_several_inputs:matcher", "tests.pipeline.test_several_inputs:pairs"


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
    assert [spec["dtype"] for spec in pipeline.inspect(pipeline.look_at(str(file))).summary["inputs"]] == [
        "float32",
        "float32",
        "int64",
    ]


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


def test_a_number_beyond_a_table_names_the_node_and_the_way_out(run_and_file: tuple[Path, Path]) -> None:
    first, second, name = (x.numpy() for x in EXAMPLE)
    with pytest.raises(ArtifactError, match=r"names.*look at the values of the input"):
        Session(run_and_file[1]).run(first, second, name + 7)


def test_bench_times_models_of_several_inputs(run_and_file: tuple[Path, Path]) -> None:
    run, file = run_and_file
    peers = ["torch", *(name for name in ("onnxruntime", "openvino") if find_spec(name) is not None)]
    report = pipeline.bench(file, run, peers=peers, rounds=2)
    assert [peer.name for peer in report.peers if peer.median is None] == []
    assert len(report.peers) == 1 + len(peers)


class Pairs(Dataset[tuple[tuple[Tensor, ...], int]]):
    """Samples whose class is the first of two names."""

    def __init__(self, count: int) -> None:
        draws = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 2, 3, 8, 8, generator=draws)
        self.names = torch.randint(5, (count, 2), generator=draws)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        first, second = self.images[index]
        return (first, second, self.names[index]), int(self.names[index, 0])


def pairs() -> tuple[Pairs, Pairs]:
    return Pairs(200), Pairs(60)


def test_the_whole_loop_takes_samples_of_several_tensors(run_and_file: tuple[Path, Path]) -> None:
    run, _ = run_and_file
    report = pipeline.finetune(pipeline.open_run(run), PAIRS, epochs=6, lr=0.02)
    assert report.held_out_accuracy > report.start_accuracy
    file = pipeline.export(pipeline.open_run(run), "trained.packed.safetensors").path
    student, packed = (pipeline.evaluate(what, PAIRS) for what in (run, file))
    assert (student.samples, student.accuracy) == (60, packed.accuracy)
    assert pipeline.verify(file, against=run, data=PAIRS).passed


def test_the_layer_to_blame_is_found_where_there_are_several_inputs() -> None:
    student = bnnconvert.convert(matcher(), "xnor", example_inputs=EXAMPLE).model
    with torch.no_grad():
        student.get_submodule("body").weight[0] = torch.nan
    assert first_not_finite(student, EXAMPLE) == "'weight' of layer 'body' is not finite"


def test_data_says_what_the_inputs_are() -> None:
    student = bnnconvert.convert(matcher(), "xnor", data=PAIRS)
    assert [spec.shape for spec in student.inputs] == [(1, 3, 8, 8), (1, 3, 8, 8), (1, 2)]
    assert student.inputs[2].below == 5


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digits", "a sample has 1 tensor, but the model takes 3; give"),
        ("tests.pipeline.test_several_inputs:floats", "gives float32 of shape 2, but the model takes int64; convert"),
    ],
)
def test_data_of_another_form_is_refused(run_and_file: tuple[Path, Path], data: str, says: str) -> None:
    with pytest.raises(RefusalError, match=says):
        pipeline.finetune(pipeline.open_run(run_and_file[0]), data, epochs=1)


def floats() -> tuple[Pairs, None]:
    made = Pairs(20)
    made.names = made.names.float()
    return made, None


def test_shapes_of_several_inputs_cannot_be_guessed() -> None:
    with pytest.raises(UsageError, match=r"takes 3 inputs \(first, second, name\).*--input-shape"):
        bnnconvert.convert(matcher(), "xnor")


def test_an_exported_program_knows_its_inputs(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(matcher(), EXAMPLE, dynamic_shapes=({0: batch},) * 3)
    torch.export.save(program, tmp_path / "model.pt2")
    student = pipeline.convert_model(str(tmp_path / "model.pt2"), "xnor", out=tmp_path / "model.bnn", dry_run=True)
    assert [(i.shape, i.dtype) for i in student.inputs] == [(i.shape, i.dtype) for i in (IMAGE, IMAGE, NAME)]
