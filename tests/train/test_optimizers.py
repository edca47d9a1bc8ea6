from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.sign import SignWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.identity import Identity
from bnnconvert.pipeline import check_recipe
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train.layout import use_layout
from bnnconvert.train.optimizers import (
    OPTIMIZERS,
    enter_stage,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from bnnconvert.train.optimizers.bop import Bop
from bnnconvert.train.optimizers.extragradient import Extragradient
from bnnconvert.train.optimizers.groups import glorot_rate
from bnnconvert.train.optimizers.shift_adamax import ShiftAdaMax
from bnnconvert.train.schedule import Span
from bnnconvert.values.recipe import Optimizer, Stage
from tests.train.toys import STAGES, Stop, StopAt, make_student, run, same_weights

DECAY = Optimizer(weight_decay=0.1, binary_weight_decay=0.01)


def test_groups_hold_each_parameter_once_by_kind() -> None:
    student = make_student()
    names = {parameter: name for name, parameter in student.named_parameters()}
    groups = {group["kind"]: {names[p] for p in group["params"]} for group in parameter_groups(student, DECAY)}
    assert groups["binary"] == {"conv.weight", "hidden.weight"}
    assert groups["float"] == {"stem.weight", "head.weight"}
    assert groups["undecayed"] == set(names.values()) - groups["binary"] - groups["float"]
    assert "conv.input_binarizer.shift" in groups["undecayed"]
    assert sum(len(group["params"]) for group in parameter_groups(student, DECAY)) == len(names)


def test_decay_follows_the_stage() -> None:
    optimizer = make_optimizer(make_student(), DECAY)

    def decay(stage: Stage) -> dict[str, float]:
        enter_stage(optimizer, DECAY, Span(0, 1, 0, 1, stage))
        return {group["kind"]: group["weight_decay"] for group in optimizer.param_groups}

    assert decay(Stage()) == {"binary": 0.01, "float": 0.1, "undecayed": 0.0}
    assert decay(Stage(weights=False)) == {"binary": 0.1, "float": 0.1, "undecayed": 0.0}
    assert decay(Stage(weight_decay=0.5)) == {"binary": 0.01, "float": 0.5, "undecayed": 0.0}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_a_step_downhill_and_can_be_saved(name: str) -> None:
    student = make_student()
    optimizer = make_optimizer(student, Optimizer(name=name, lr=0.001))
    before = student.get_submodule("head").weight.detach().clone()
    student.get_submodule("head").weight.grad = torch.ones_like(before)
    optimizer.step()
    assert (student.get_submodule("head").weight < before).all()
    optimizer.load_state_dict(optimizer.state_dict())


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(UsageError, match="unknown optimizer 'adm'; did you mean 'adam'"):
        make_optimizer(make_student(), Optimizer(name="adm"))


def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    """Fused optimizers walk over both as flat memory."""
    student = make_student()
    use_layout(student, torch.channels_last)
    student(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name
    weight = student.get_submodule("conv").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = weight.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    plain.grad = weight.grad.clone(memory_format=torch.contiguous_format)
    for _ in range(2):
        make_optimizer(student, Optimizer()).step()
        torch.optim.Adam([plain], lr=1e-3).step()
    torch.testing.assert_close(weight, plain)


def settings(name: str, **options: Any) -> Optimizer:
    return Optimizer.model_validate({"name": name} | options)


def groups(*weights: nn.Parameter, kind: str = "binary") -> list[dict[str, Any]]:
    return [
        {
            "params": list(weights),
            "weight_decay": 0.0,
            "kind": kind,
            "binary": kind == "binary",
            "path": "",
            "rate": 1.0,
        }
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam", "momentum": 0.5}, "optimizer 'adam' has no option 'momentum'"),
        ({"name": "sgd", "momentun": 0.5}, "no option 'momentun'; did you mean 'momentum'"),
        ({"name": "adam", "weight_decai": 0.5}, "did you mean 'weight_decay'"),
        ({"name": "bop", "gamma": 2.0}, "option 'gamma' is 2.0: .*less than or equal to 1"),
        ({"name": "adam", "fused": True}, "no option 'fused'"),
        ({"name": "adam", "betas": [0.9, 1.0]}, "option 'betas' is .*less than 1"),
        ({"name": "shift-adamax", "betas": [-0.1, 0.9]}, "option 'betas' is .*greater than or equal to 0"),
        ({"name": "adamw", "betas": [0.9]}, "option 'betas' is .*field required"),
        ({"name": "sgd", "momentum": 2.0}, "option 'momentum' is 2.0: .*less than 1"),
    ],
)
def test_wrong_options_are_named_with_the_nearest_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"training.optimizer: .*{message}"):
        make_optimizer(make_student(), Optimizer.model_validate(options))


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "bop", "shift-adamax"])
def test_betas_are_a_recipe_s(name: str) -> None:
    made = make_optimizer(make_student(), Optimizer.model_validate({"name": name, "betas": [0.8, 0.95]}))
    assert {group["betas"] for group in made.param_groups} == {(0.8, 0.95)}


def test_glorot_is_a_rate_for_each_layer_while_its_weights_are_binary() -> None:
    assert glorot_rate(nn.Parameter(torch.zeros(1024, 1024))) == pytest.approx(36.9504, abs=1e-4)
    assert glorot_rate(nn.Parameter(torch.zeros(8, 6, 3, 3))) == pytest.approx((14 * 9 / 1.5) ** 0.5)
    plan = settings("sgd", glorot=True)
    optimizer = make_optimizer(make_student(), plan)
    expected = {"conv": (14 * 9 / 1.5) ** 0.5, "hidden": (40 / 1.5) ** 0.5, "": 1.0}
    set_learning_rate(optimizer, 0.1)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1 * expected[group["path"]])
    enter_stage(optimizer, plan, Span(0, 1, 0, 1, Stage(weights=False)))
    set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_a_glorot_rate_is_an_update_scaled_after_adam() -> None:
    """BinaryConnect: W <- W + scale (W_adam - W)."""
    ours, plain = make_student(drop=0.0), make_student(drop=0.0)
    scaled = make_optimizer(ours, settings("adam", lr=0.001, glorot=True))
    adam = make_optimizer(plain, settings("adam", lr=0.001))
    set_learning_rate(scaled, 0.001)
    for student in (ours, plain):
        student(torch.ones(2, 3, 8, 8)).sum().backward()
    before = plain.get_submodule("hidden").weight.detach().clone()
    scaled.step()
    adam.step()
    moved = plain.get_submodule("hidden").weight - before
    torch.testing.assert_close(ours.get_submodule("hidden").weight, before + (40 / 1.5) ** 0.5 * moved)


def test_bop_flips_a_weight_when_its_gradient_agrees_with_it_beyond_the_threshold() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, 0.0, -0.3]))
    bop = Bop(groups(weight), lr=0.1, fused=False, gamma=1.0, threshold=2.0**-27)
    weight.grad = torch.tensor([2e-8, -2e-8, 0.5e-8, -2e-8, 2e-8, 2.0**-27, 0.0])
    bop.step()
    # At the threshold itself a weight stays; sizes are forgotten, and sign(0) = +1.
    assert weight.tolist() == [-1, 1, 1, 1, -1, 1, -1]


def test_bop_averages_gradients_with_a_rate_that_follows_the_schedule() -> None:
    weight = nn.Parameter(torch.ones(1))
    bop = Bop(groups(weight), lr=0.1, fused=False, gamma=0.5, threshold=1.0)
    for rate, expected in ((0.1, 0.5), (0.05, 0.75 * 0.5 + 0.25)):
        set_learning_rate(bop, rate)
        weight.grad = torch.ones(1)
        bop.step()
        assert bop.state[weight]["consistency"].item() == pytest.approx(expected)
    assert weight.item() == 1.0


def test_bop_trains_the_rest_and_float_stages_by_adam() -> None:
    ours, plain = make_student(drop=0.0), make_student(drop=0.0)
    for student in (ours, plain):
        for name in ("conv", "hidden"):
            student.get_submodule(name).weight_binarizer = SignWeight(estimator=Identity())
    bop, adam = make_optimizer(ours, settings("bop")), make_optimizer(plain, settings("adam"))
    for student in (ours, plain):
        student(torch.ones(2, 3, 8, 8)).sum().backward()
    bop.step()
    adam.step()
    assert torch.equal(ours.get_submodule("stem").weight, plain.get_submodule("stem").weight)
    assert set(ours.get_submodule("conv").weight.unique().tolist()) == {-1.0, 1.0}
    weight = ours.get_submodule("conv").weight
    enter_stage(bop, settings("bop"), Span(0, 1, 0, 1, Stage(weights=False)))
    weight.grad = torch.ones_like(weight)
    bop.step()
    torch.testing.assert_close(weight.abs().sub(1).abs(), torch.full_like(weight, 1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("binarizer", "message"),
    [
        (ScaledSignWeight(estimator=Identity()), "conv: its binary weights depend on the sizes"),
        (SignWeight(estimator=Clip(closed=False)), "conv: no gradient passes its estimator at ±1"),
    ],
)
def test_bop_refuses_weights_with_a_magnitude(binarizer: nn.Module, message: str) -> None:
    student = make_student()
    student.get_submodule("conv").weight_binarizer = binarizer
    with pytest.raises(UsageError, match=f"training.optimizer: Bop cannot train {message}"):
        make_optimizer(student, settings("bop"))


def test_a_recipe_that_gives_bop_a_magnitude_is_refused_before_anything_runs() -> None:
    text = recipe_text("bop")
    text = text.replace('"sign", estimator = "identity"', '"scaled-sign", estimator = "identity"')
    with pytest.raises(
        UsageError, match=r"training.optimizer: Bop cannot train recipe 'bop', layers\[4\].weights: its"
    ):
        check_recipe(parse_recipe(text, where="mine.toml"))


def test_shift_adamax_multiplies_by_powers_of_two() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = ShiftAdaMax(groups(weight), lr=0.01)
    weight.grad = torch.tensor([0.3, -3.0, 0.0])
    optimizer.step()
    # AP2(0.3) = 1/4, AP2(3) = 4; m = g / 8; lr / (1 - b1) = 0.08, whose power of two is 1/16.
    expected = 1 - torch.tensor([0.3 / 8 / (0.25 + 2**-27), -3 / 8 / (4 + 2**-27), 0.0]) / 16
    torch.testing.assert_close(weight.detach(), expected)
    largest = optimizer.state[weight]["largest"]
    assert largest.tolist() == [0.25, 4.0, 2**-27]  # the floor is below the precision of the others
    weight.grad = torch.tensor([0.7, 0.0, 0.0])
    optimizer.step()
    assert optimizer.state[weight]["largest"][0].item() == 0.5  # AP2(0.7)
    assert optimizer.state[weight]["largest"][1].item() == 4.0  # AP2(b2 4) = 4


def test_extragradient_descends_with_the_gradient_from_ahead() -> None:
    """On f = a w^2 / 2 one step is w (1 - lr a (1 - lr a))."""
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = Extragradient(groups(weight), lr=0.1)
    for _ in range(optimizer.evaluations):
        optimizer.zero_grad()
        (3 * weight.square() / 2).sum().backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.0, -1.0]) * (1 - 0.3 * 0.7))
    assert not optimizer.state[weight]


def test_two_gradients_a_step_are_refused_with_fp16() -> None:
    with pytest.raises(UsageError, match="'extragradient' takes two gradients a step and fp16 may skip one; use bf16"):
        run(training={"optimizer": {"name": "extragradient", "lr": 0.01}}, mixed_precision="fp16")


@pytest.mark.parametrize("name", ["bop", "shift-adamax", "extragradient"])
def test_a_run_goes_on_exactly_with_the_optimizers_state(tmp_path: Path, name: str) -> None:
    def student() -> Any:
        made = make_student()
        for path in ("conv", "hidden"):
            made.get_submodule(path).weight_binarizer = SignWeight(estimator=Identity())
        return made

    training = {"optimizer": {"name": name, "lr": 0.01, "glorot": True}, "stages": STAGES, "epochs": 2}
    whole, _ = run(student=student(), training=training)
    with pytest.raises(Stop):
        run(tmp_path, student=student(), training=training, progress=StopAt(8), checkpoint_seconds=0.0)
    resumed, report = run(tmp_path, student=student(), training=training, resume=True)
    assert report.steps == 12
    assert same_weights(whole, resumed)
