"""The Python API and the run directory: rebuilt exactly, written whole or not at all, refusing what would lose work."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bnnconvert
from bnnconvert.errors import ArtifactError, RefusalError, UsageError
from bnnconvert.pipeline import convert_model, inspect, look_at, open_run
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.report import GoldenReport, VerifyReport
from tests.locks import another_process_in
from tests.networks import Residual, plain, randomise


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(randomise(plain()), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def data(labels: int = 5) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 8, 8), generator=generator, dtype=torch.uint8)
    part = Images(images, torch.arange(80) % labels)
    return Data(part, part, None, specs_of((1, 3, 8, 8)), "uint8", (0.5,) * 3, (0.25,) * 3, "toy")


def test_a_run_is_rebuilt_to_the_same_student(model_file: Path) -> None:
    made = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    assert made.run is not None
    again = open_run()
    assert again.run is not None
    assert again.run.path == made.run.path == model_file.with_name("model.bnn")
    assert again.plan.layers == made.plan.layers
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(made.model.eval()(x), again.model.eval()(x))
    assert torch.equal(made.teacher(x), again.teacher(x))
    plan = json.loads((made.run.path / "plan.json").read_text())
    assert plan["totals"]["predicted_artifact_bytes"] == made.plan.predicted_bytes


def test_the_whole_loop_in_a_folder(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    student = open_run()
    bnnconvert.finetune(student, data(), epochs=1, batch_size=16)
    fresh = open_run()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(fresh.model.eval()(x), student.model.eval()(x))
    report = bnnconvert.export(fresh)
    assert report.path == str(model_file.with_name("model.packed.safetensors"))
    assert report.predicted_bytes == report.tensor_bytes == fresh_prediction(student)
    packed = bnnconvert.evaluate(report.path, data())
    assert packed.kind == "artifact"
    assert packed.accuracy == bnnconvert.evaluate("model.bnn", data()).accuracy
    assert isinstance(bnnconvert.verify(report.path), GoldenReport)
    against = bnnconvert.verify(report.path, against="model.bnn", data=data(), samples=20)
    assert isinstance(against, VerifyReport)
    assert against.passed
    session = bnnconvert.Session(report.path)
    np.testing.assert_allclose(session.run(x.numpy()), fresh.model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert session.metadata.normalisation is not None
    assert session.metadata.normalisation.mean == (0.5, 0.5, 0.5)


def fresh_prediction(student: bnnconvert.Student) -> int:
    return json.loads((student.run.path / "plan.json").read_text())["totals"]["predicted_artifact_bytes"]  # type: ignore[union-attr, no-any-return]


def test_the_users_model_is_not_touched() -> None:
    module = randomise(Residual())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    student = bnnconvert.convert(module, "reactnet", input_shape=(1, 3, 8, 8))
    bnnconvert.finetune(student, data(), max_steps=4, batch_size=16)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in student.teacher.state_dict().items())


def test_conversion_with_data_sets_batch_norm_on_it() -> None:
    torch.manual_seed(0)
    module = randomise(Residual())
    blind = bnnconvert.convert(module, "xnor", input_shape=(1, 3, 8, 8)).model
    seeing = bnnconvert.convert(module, "xnor", data=data()).model
    name = "layer1.conv1_norm.running_mean"
    assert not blind.state_dict()[name].any()
    assert seeing.state_dict()[name].any()
    assert not seeing.training


def test_a_dry_run_writes_nothing(model_file: Path) -> None:
    student = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8), dry_run=True)
    assert student.run is None
    assert sorted(p.name for p in model_file.parent.iterdir()) == ["model.pt"]


def test_a_refused_model_leaves_nothing(model_file: Path) -> None:
    text = 'name = "t"\ntitle = "t"\nsource = "t"\nsummary = "t"\nrewrites = ["binarize"]\n'
    rule = (
        '[[layers]]\nweights = { name = "sign", estimator = "clip" }\ninputs = { name = "sign", estimator = "clip" }\n'
    )
    model_file.with_name("trap.toml").write_text(text + rule)
    with pytest.raises(RefusalError, match="Dead signs"):
        convert_model("model.pt", "trap.toml", input_shape=(1, 3, 8, 8))
    assert sorted(p.name for p in model_file.parent.iterdir()) == ["model.pt", "trap.toml"]


def test_a_fine_tuned_run_is_not_thrown_away(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    convert_model("model.pt", "bwn", input_shape=(1, 3, 8, 8))  # nothing trained yet
    student = open_run()
    assert student.recipe.name == "bwn"
    bnnconvert.finetune(student, data(), max_steps=1, batch_size=16)
    with pytest.raises(UsageError, match="--replace"):
        convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    with pytest.raises(UsageError, match=r"--resume.*--restart"):
        bnnconvert.finetune(student, data(), max_steps=1, batch_size=16)
    bnnconvert.finetune(student, data(), max_steps=1, batch_size=16, restart=True)
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8), replace=True)
    assert open_run().recipe.name == "xnor"


def test_nothing_of_a_run_that_another_process_trains_is_lost(model_file: Path) -> None:
    student = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    bnnconvert.finetune(student, data(), max_steps=1, batch_size=16)
    assert student.run is not None
    before = contents(student.run.path)
    with another_process_in(student.run.path):
        with pytest.raises(UsageError, match="another process"):
            bnnconvert.finetune(student, data(), max_steps=1, batch_size=16, restart=True)
        with pytest.raises(UsageError, match="another process"):
            convert_model("model.pt", "bwn", input_shape=(1, 3, 8, 8), replace=True)
        assert contents(student.run.path) == before
    assert sorted(path.name for path in model_file.parent.iterdir()) == ["model.bnn", "model.pt"]
    convert_model("model.pt", "bwn", input_shape=(1, 3, 8, 8), replace=True)
    assert open_run().recipe.name == "bwn"
    assert sorted(path.name for path in model_file.parent.iterdir()) == ["model.bnn", "model.pt"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def test_a_factory_alone_keeps_its_weights_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = convert_model("tests.networks:Residual", "xnor", input_shape=(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(open_run().teacher(x), made.teacher(x))


def test_a_state_dict_with_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = randomise(Residual())
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    convert_model("weights.safetensors", "xnor", model="tests.networks:Residual", input_shape=(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(open_run().teacher(x), module(x))


def test_opening_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="convert"):
        open_run()
    with pytest.raises(UsageError, match="no run directory"):
        open_run(tmp_path)


def test_damaged_runs_are_named(model_file: Path) -> None:
    made = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    assert made.run is not None
    weights = made.run.file("student.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"student\.safetensors"):
        open_run()
    made.run.file("run.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"run\.json"):
        open_run()


def test_data_that_does_not_fit_is_refused_before_training(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    with pytest.raises(RefusalError, match="5 outputs"):
        bnnconvert.finetune(open_run(), data(labels=7))
    assert not open_run().run.has_checkpoint  # type: ignore[union-attr]


def test_inspect_knows_models_runs_and_artifacts(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    bnnconvert.export(open_run())
    for target, kind in (("model.pt", "model"), ("model.bnn", "run"), ("model.packed.safetensors", "artifact")):
        found = inspect(look_at(target))
        assert found.kind == kind
        assert found.layers
        assert all("name" in layer for layer in found.layers)
        json.dumps(found.summary)


def test_an_artifact_is_known_by_its_content(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    bnnconvert.export(open_run(), "other.safetensors")
    assert inspect(look_at("other.safetensors")).kind == "artifact"
    with pytest.raises(UsageError, match="--data"):
        bnnconvert.evaluate("other.safetensors")


def test_input_shape_is_guessed_and_said(model_file: Path) -> None:
    student = convert_model("model.pt", "xnor")
    assert "guessed" in student.notes[0]
    assert student.input_shape[1] == 3


def test_a_guessed_shape_gives_way_to_the_datas(model_file: Path) -> None:
    guessed = convert_model("model.pt", "xnor")
    assert guessed.input_shape != (1, 3, 8, 8)
    student = open_run()
    bnnconvert.finetune(student, data(), max_steps=1, batch_size=16)
    again = open_run()
    assert again.input_shape == student.input_shape == (1, 3, 8, 8)
    assert again.run is not None
    assert again.run.read().source == "model.pt"
    assert bnnconvert.evaluate("model.bnn", data()).samples == 80


def test_a_given_shape_does_not(model_file: Path) -> None:
    convert_model("model.pt", "xnor", input_shape=(1, 3, 16, 16))
    with pytest.raises(RefusalError, match="8x8"):
        bnnconvert.finetune(open_run(), data(), max_steps=1)


def test_frozen_parameters_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(randomise(plain()).requires_grad_(False), "frozen.pt")
    convert_model("frozen.pt", "xnor", input_shape=(1, 3, 8, 8))
    assert all(p.requires_grad for p in open_run().model.parameters())


def test_a_model_with_several_outputs_exports_with_their_structure(tmp_path: Path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()[:-1]
            self.a, self.b = nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            x = self.body(x)
            return {"a": self.a(x), "rest": [self.b(x)]}

    student = bnnconvert.convert(randomise(Heads()), "xnor", input_shape=(1, 3, 8, 8))
    report = bnnconvert.export(student, tmp_path / "h.packed.safetensors")
    x = np.zeros((3, 3, 8, 8), np.float32)
    output = bnnconvert.Session(report.path).run(x)
    assert output["a"].shape == (3, 2)
    assert output["rest"][0].shape == (3, 3)


def test_8_bit_ends_are_verified_and_their_cost_is_told(model_file: Path) -> None:
    student = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    report = bnnconvert.export(student, "e.packed.safetensors", edges="int8", data=data())
    assert report.edges is not None
    plan = {layer.facts.path: layer for layer in student.plan.layers}
    assert report.edges.layers == tuple(path for path, layer in plan.items() if layer.decision == "float")
    assert (report.edges.samples, report.edges.split) == (80, "test")
    assert 0 <= report.edges.flipped < 0.2
    assert {part.layer for part in report.layers} == {p for p, layer in plan.items() if layer.decision == "binary"}
    float_ends = bnnconvert.export(student, "f.packed.safetensors")
    assert report.tensor_bytes < float_ends.tensor_bytes
    proved = bnnconvert.verify("e.packed.safetensors", against=student)
    assert isinstance(proved, VerifyReport)
    assert proved.passed
    accuracy = bnnconvert.evaluate("e.packed.safetensors", data()).accuracy
    assert accuracy == pytest.approx(report.edges.accuracy_int8, abs=0.02)


def test_comparing_takes_as_few_samples_at_once_as_memory_holds(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    bnnconvert.export(student, "net.packed.safetensors")
    steps: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    bnnconvert.verify("net.packed.safetensors", against=student, samples=3, progress=note)
    monkeypatch.setattr(importlib.import_module("bnnconvert.pipeline.verify"), "KEPT", 1)
    bnnconvert.verify("net.packed.safetensors", against=student, samples=3, progress=note)
    assert steps == [(3, 3), (1, 3), (2, 3), (3, 3)]


def test_8_bit_ends_need_data(model_file: Path) -> None:
    student = convert_model("model.pt", "xnor", input_shape=(1, 3, 8, 8))
    with pytest.raises(UsageError, match="no data to calibrate on; give it with --data DIR"):
        bnnconvert.export(student, "e.packed.safetensors", edges="int8")
    assert not Path("e.packed.safetensors").exists()


def test_a_student_without_float_ends_has_nothing_to_put_into_8_bits(model_file: Path) -> None:
    student = convert_model("model.pt", "bnn", input_shape=(1, 3, 8, 8))
    with pytest.raises(RefusalError, match="no float layer at its ends; leave out --edges int8"):
        bnnconvert.export(student, "e.packed.safetensors", edges="int8", data=data())


class Token(nn.Module):
    """A layer on a token that is the same for every sample, between two that see the image."""

    input_shape = (1, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6)
        self.token, self.query, self.head = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.patches(x).flatten(2).transpose(1, 2))
        query = self.query(self.token.expand(x.shape[0], 1, 6))
        return self.head((query @ x.transpose(1, 2)).softmax(2) @ x).squeeze(1)


def test_a_layer_whose_sign_says_nothing_stays_float_in_the_run_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    student = convert_model("tests.pipeline.test_pipeline:Token", "xnor", input_shape=(1, 3, 8, 8))
    query = student.plan.layer("query")
    assert query is not None
    assert (query.decision, query.reason) == ("float", "its binary input would be constant, whatever the sample")
    assert {p.facts.path for p in student.plan.layers if p.decision == "binary"} == {"mix"}
    again = open_run()
    assert again.plan.layer("query") == query
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.model.eval()(x), student.model.eval()(x), rtol=0, atol=0)
