"""A rule's `predict`: from the recipe to a verified file, with what it saves and costs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bnnconvert
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.pipeline import convert_model, inspect, look_at, open_run
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of
from bnnconvert.values.report import VerifyReport
from tests.networks import Residual, randomise

RULE = """
[[layers]]
match = { path = ["layer1.*", "layer2.downsample.0"] }
keep = "sensitive"
predict = 0.05

[[layers]]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(randomise(Residual()), "model.pt")
    Path("mine.toml").write_text(recipe_text("bwn").replace("\n[[layers]]\n", RULE, 1))
    convert_model("model.pt", "mine.toml", trust_pickle=True, input_shape=(1, 3, 8, 8))


def data(*, test: bool = True) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 8, 8), generator=generator, dtype=torch.uint8)
    part = Images(images[:40], torch.arange(40) % 5)
    unseen = Images(images[40:60], torch.arange(20) % 5) if test else None
    return Data(part, unseen, None, specs_of((1, 3, 8, 8)), "uint8", (0.5,) * 3, (0.25,) * 3, "toy")


def test_the_plan_says_who_has_a_predictor_and_who_cannot(run: None) -> None:
    plan = open_run().plan
    assert plan.predicted == {"layer1.conv1": 0.05}
    for path in ("layer1.conv2", "layer2.downsample.0"):
        layer = plan.layer(path)
        assert layer is not None
        assert layer.reason == "sensitive; no predictor, as its output does not go into a ReLU and nowhere else"
    shown = {layer["name"]: layer["predict"] for layer in inspect(look_at("model.bnn")).layers}
    assert {name for name, share in shown.items() if share is not None} == {"layer1.conv1"}


def test_the_whole_way_from_recipe_to_verified_file(run: None) -> None:
    student = open_run()
    report = bnnconvert.export(student, "p.packed.safetensors", data=data())
    assert report.predictions is not None
    assert (report.predictions.samples, report.predictions.split) == (20, "test")
    (layer,) = report.predictions.layers
    assert (layer.layer, layer.macs) == ("layer1.conv1", 8 * 8 * 9 * 64)
    assert 0 < layer.avoided < 1
    assert 0 < layer.missed < 0.2
    planned = json.loads(Path("model.bnn/plan.json").read_text())["totals"]["predicted_artifact_bytes"]
    assert report.tensor_bytes == report.predicted_bytes == planned
    session = bnnconvert.Session("p.packed.safetensors")
    accuracy = bnnconvert.evaluate("p.packed.safetensors", data()).accuracy
    assert accuracy == report.predictions.accuracy_predicted == session.metadata.metrics["predicted_test_accuracy"]
    x = data().inputs(data().test, torch.arange(20))
    portable = bnnconvert.Session("p.packed.safetensors", engine="portable").run(x.numpy())
    np.testing.assert_allclose(session.run(x.numpy()), portable, rtol=1e-4, atol=1e-4)
    assert not np.allclose(portable, student.model.eval()(x).detach().numpy(), atol=1e-3)
    proved = bnnconvert.verify("p.packed.safetensors", against="model.bnn", data=data())
    assert isinstance(proved, VerifyReport)
    assert proved.passed
    assert proved.differing_samples == 0


def test_without_a_test_set_the_training_images_are_counted(run: None) -> None:
    report = bnnconvert.export(open_run(), "p.packed.safetensors", data=data(test=False))
    assert report.predictions is not None
    assert (report.predictions.samples, report.predictions.split) == (40, "train")
    assert report.predictions.layers[0].missed <= 0.05


def test_predictors_need_data(run: None) -> None:
    with pytest.raises(UsageError, match="no data to calibrate on; give it with --data DIR"):
        bnnconvert.export(open_run(), "p.packed.safetensors")


def test_a_predicted_end_is_not_stored_in_8_bits(run: None) -> None:
    student = open_run()
    layers = tuple(replace(p, predict=0.1) if p.facts.is_first else p for p in student.plan.layers)
    student.plan = replace(student.plan, layers=layers)
    with pytest.raises(RefusalError, match="conv1: has a predictor and multiplies in float"):
        bnnconvert.export(student, "p.packed.safetensors", edges="int8", data=data())


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ('weights = { name = "sign", estimator = "clip" }', "is for layers that a rule keeps"),
        ('keep = "so"\nint8 = true', "excludes `int8`"),
    ],
    ids=["binary", "8 bits"],
)
def test_only_layers_that_stay_float_are_predicted(keys: str, why: str) -> None:
    text = recipe_text("bwn").replace("\n[[layers]]\n", f"\n[[layers]]\npredict = 0.1\n{keys}\n\n[[layers]]\n", 1)
    with pytest.raises(UsageError, match=why):
        parse_recipe(text, where="mine.toml")
    with pytest.raises(UsageError, match="predict"):
        parse_recipe(text.replace("predict = 0.1", "predict = 1.0"), where="mine.toml")
