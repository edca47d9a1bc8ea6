"""Weights fitted layer by layer: what the layers see, where it belongs in a run, what it gains on real features."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from bnnconvert.binarizers.hwgq import HwgqInput
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.ternary import TernaryWeight
from bnnconvert.binarizers.tsq import TsqInput
from bnnconvert.errors import UsageError
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.load.data import load_data
from bnnconvert.pipeline import check_recipe
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train import layer_wise
from bnnconvert.train.calibrate import reestimate_batch_norm
from bnnconvert.train.latent import set_stage
from bnnconvert.train.layer_solver import Codes, Fit, Weights, fit
from bnnconvert.train.layer_wise import fit_weights, refuse_unfit
from bnnconvert.values.progress import Silent
from bnnconvert.values.recipe import Training
from tests.rarely import rarely
from tests.train.toys import FITTED, Stop, StopAt, make_ternary_student, run, same_weights, trace

WEIGHTS = {
    "otwa": lambda: TernaryWeight(),
    "twn": lambda: TernaryWeight(threshold="twn"),
    "binary": lambda: ScaledSignWeight(estimator=Clip()),
}


def net(weights: str = "otwa", *, channels: int = 1) -> GraphModule:
    """A stem, a convolution that is read by a pool and a quantizer, one that a sum reads, a linear layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(channels, 6, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(6, affine=False)
            self.conv1 = binary(nn.Conv2d(6, 8, 3, padding=1), 6)
            self.norm2 = nn.BatchNorm2d(8)
            self.pool = nn.MaxPool2d(2)
            self.norm3 = nn.BatchNorm2d(8, affine=False)
            self.conv2 = binary(nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), 8)
            self.norm4 = nn.BatchNorm2d(8, affine=False)
            self.linear = binary(nn.Linear(128, 10), 128)
            self.flatten = nn.Flatten()
            self.head = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm3(self.pool(self.norm2(self.conv1(self.norm1(self.stem(x))))))
            x = self.norm4(self.conv2(x)) + 1
            return self.head(self.linear(self.flatten(x)))

    def binary(layer: nn.Conv2d | nn.Linear, inputs: int) -> BinaryLayer:
        made, kind = WEIGHTS[weights](), BinaryConv2d if isinstance(layer, nn.Conv2d) else BinaryLinear
        return kind.from_float(layer, weight_binarizer=made, input_binarizer=TsqInput(inputs))  # type: ignore[arg-type]

    torch.manual_seed(0)
    student = trace(Net())
    nn.init.normal_(student.get_submodule("norm2").weight)  # of either sign
    return student


def floats(student: GraphModule, batches: list[Tensor]) -> GraphModule:
    """The student as step one leaves it."""
    set_stage(student, weights=False, inputs=True)
    reestimate_batch_norm(student, batches)
    return student.eval()


def layers_of(student: GraphModule) -> dict[str, BinaryLayer]:
    return {path: m for path, m in student.named_modules() if isinstance(m, BinaryLayer)}


def digits() -> list[Tensor]:
    data = load_data("digits")
    return [data.inputs(data.train, part) for part in torch.split(torch.arange(512), 128)]


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize("weights", WEIGHTS)
def test_binarizers_give_back_what_was_fitted(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Weights] = []

    def watched(*args: Any, **options: Any) -> Fit:
        made = fit(*args, **options)
        found.append(made.weights)
        return made

    monkeypatch.setattr(layer_wise, "fit", watched)
    batches = [torch.randn(40, 1, 8, 8) for _ in range(2)]
    student = floats(net(weights), batches)
    fit_weights(student, batches, seed=0, told=silent)
    assert len(found) == 3
    for layer, made in zip(layers_of(student).values(), found, strict=True):
        value = layer.weight_binarizer(layer.weight).reshape(made.w.shape)
        assert layer.weights_are_binary
        assert torch.equal(value.sign(), made.w)
        torch.testing.assert_close(value, made.values, rtol=1e-6, atol=0)
        planes = sum(p.pm1 * p.scale.reshape(-1, *(1,) * (p.pm1.dim() - 1)) for p in layer.weight_planes())
        torch.testing.assert_close(planes.reshape(made.w.shape), made.values, rtol=1e-6, atol=1e-9)


def test_layers_see_what_the_fitted_ones_give_and_want_what_float_weights_give(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Tensor, Tensor, Codes | None]] = []

    def watched(patches: Tensor, wanted: Tensor, start: Weights, *, codes: Codes | None, **rest: Any) -> Fit:
        given.append((patches, wanted, codes))
        return fit(patches, wanted, start, codes=codes, **rest)

    monkeypatch.setattr(layer_wise, "fit", watched)
    monkeypatch.setattr(layer_wise, "PATCHES", 10**6)  # all of them
    batches = [torch.randn(20, 1, 8, 8)]
    student = floats(net(), batches)
    float_values = values_of(student, batches[0])
    fit_weights(student, batches, seed=0, told=silent)
    fitted_values = values_of(student, batches[0])
    for (patches, wanted, codes), (path, layer) in zip(given, layers_of(student).items(), strict=True):
        x, y = layer.input_binarizer(fitted_values[path][0]), float_values[path][1]  # type: ignore[misc]
        seen, rows = layer.windows(x), layer.positions(y)
        groups, n = seen.shape[1:3]
        assert patches.shape == (groups, seen.shape[0] * seen.shape[3], n)
        torch.testing.assert_close(patches.sum((1, 2)), seen.sum((0, 2, 3)), rtol=1e-4, atol=0)
        bias = 0 if layer.bias is None else layer.bias.detach().reshape(groups, -1, 1)
        torch.testing.assert_close(wanted.sum(1), (rows - bias).sum((0, 3)), rtol=1e-3, atol=1e-3)
        assert (codes is not None) == (path == "conv1")  # the others are read by a sum and by a float layer
    codes = given[0][2]
    assert codes is not None
    y, layer = float_values["conv1"][1], layers_of(student)["conv1"]
    entering = student.get_submodule("norm3")(student.get_submodule("norm2")(y))
    no_bias = (layer.positions(y - layer.bias.detach().reshape(-1, 1, 1))).permute(1, 0, 3, 2).flatten(1, 2)
    ours = codes.entering(no_bias)
    torch.testing.assert_close(ours, layer.positions(entering).permute(1, 0, 3, 2).flatten(1, 2), rtol=1e-4, atol=1e-4)


def values_of(student: GraphModule, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What enters and leaves each binary layer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _m, inputs, y, path=path: seen.update({path: (inputs[0], y)}))
        for path, layer in layers_of(student).items()
    ]
    with torch.no_grad():
        student.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("weights", WEIGHTS)
def test_features_of_real_digits_are_fitted_better_than_by_the_weights_alone(weights: str) -> None:
    batches, told = digits(), list[str]()
    student = floats(net(weights), batches)
    with torch.no_grad():
        wanted = torch.cat([student(x) for x in batches])
        twin = floats(net(weights), batches)
        set_stage(twin, weights=True, inputs=True)
        plain = torch.cat([twin(x) for x in batches])
        fit_weights(student, batches, seed=0, told=told.append)
        fitted = torch.cat([student(x) for x in batches])
    assert (fitted - wanted).square().sum() < 0.5 * (plain - wanted).square().sum()
    assert [line.split(" fitted")[0] for line in told] == ["conv1 (1 of 3)", "conv2 (2 of 3)", "linear (3 of 3)"]
    for line in told:
        before, after = (float(part.split()[-1]) for part in line.split(" %")[:2])
        assert after < before


def test_a_layer_called_twice_is_fitted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = BinaryConv2d.from_float(
                nn.Conv2d(3, 3, 3, padding=1), weight_binarizer=TernaryWeight(), input_binarizer=HwgqInput(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    student, told = floats(trace(Twice()), []), list[str]()
    fit_weights(student, [torch.randn(8, 3, 6, 6)], seed=0, told=told.append)
    assert len(told) == 1


@pytest.mark.parametrize("at", [2, 11, *rarely(10, 14)])
@pytest.mark.parametrize("spans", ["stage", "run"])
def test_a_run_with_a_fit_goes_on_exactly_from_any_step(tmp_path: Path, at: int, spans: str) -> None:
    training = {"stages": FITTED, "schedule_spans": spans}
    whole, report = run(tmp_path / "whole", student=make_ternary_student(), training=training)
    with pytest.raises(Stop):
        run(
            tmp_path / "cut",
            student=make_ternary_student(),
            training=training,
            progress=StopAt(at),
            checkpoint_seconds=0.0,
        )
    resumed, again = run(tmp_path / "cut", student=make_ternary_student(), training=training, resume=True)
    assert same_weights(whole, resumed)
    assert [e.loss for e in report.history] == [e.loss for e in again.history]


def test_the_fit_is_in_the_checkpoint_and_is_not_made_twice(tmp_path: Path) -> None:
    class Notes(StopAt):
        def __init__(self, step: int) -> None:
            super().__init__(step)
            self.said: list[str] = []

        def note(self, message: str) -> None:
            self.said.append(message)

    first, second = Notes(11), Notes(0)  # 18 steps, of which the first 10 have float weights
    with pytest.raises(Stop):
        run(
            tmp_path,
            student=make_ternary_student(),
            training={"stages": FITTED},
            progress=first,
            checkpoint_seconds=1e9,
        )
    run(tmp_path, student=make_ternary_student(), training={"stages": FITTED}, progress=second, resume=True)
    assert [line.split(" (")[0] for line in first.said] == ["conv", "hidden"]
    assert second.said == []


@pytest.mark.parametrize(
    "stages", [[{"fit": "layer-wise"}], [{"share": 0.5, "weights": 4}, FITTED[2] | {"share": 0.5}]]
)
def test_a_run_may_begin_with_a_fit_and_one_may_follow_few_bits(stages: list[dict[str, Any]]) -> None:
    said: list[str] = []

    class Notes(Silent):
        def note(self, message: str) -> None:
            said.append(message)

    run(student=make_ternary_student(), training={"stages": stages}, progress=Notes())
    assert len(said) == 2


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ('[{ fit = "layerwise" }]', "stages[0].fit: input should be 'layer-wise'"),
        ('[{ share = 0.5, weights = false, fit = "layer-wise" }, { share = 0.5 }]', "a stage that makes the weights"),
        ('[{ frozen = 1.0, fit = "layer-wise" }]', "freezes none"),
        ('[{ share = 0.5 }, { share = 0.5, fit = "layer-wise" }]', "the stage in which the weights become binary"),
    ],
)
def test_stages_that_make_no_sense_name_the_key(stages: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_recipe(recipe_text("xnor") + f"\nstages = {stages}\n", where="mine.toml")
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "place"), [("irnet", "layers[4].weights"), ("xnor-k", "layers[4].weights")])
def test_a_recipe_whose_weights_cannot_be_fitted_is_refused_at_once(name: str, place: str) -> None:
    text = recipe_text(name)
    text = text[: text.index("stages = [")] if "stages = [" in text else text
    recipe = parse_recipe(text + '\nstages = [{ fit = "layer-wise" }]\n', where="mine.toml")
    with pytest.raises(UsageError, match="'scaled-sign', 'ternary' without a gain") as error:
        check_recipe(recipe)
    assert place in str(error.value)


def test_so_is_a_student_of_other_weights() -> None:
    with pytest.raises(UsageError, match="those of conv are not"):
        run(training={"stages": FITTED})


def test_so_is_an_embedding() -> None:
    table = BinaryEmbedding.from_float(nn.Embedding(5, 4), weight_binarizer=TernaryWeight())
    training = Training.model_validate({"stages": FITTED})
    with pytest.raises(UsageError, match="the embedding 0 looks up; keep it float"):
        refuse_unfit(nn.Sequential(table), training)
