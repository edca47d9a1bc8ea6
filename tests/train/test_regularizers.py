"""Losses about the student itself: what reaches a sign, and the weights behind it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bnnconvert.binarizers.admm import project
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.train import set_stage
from bnnconvert.train.losses import Outputs
from bnnconvert.train.losses.admm import Admm
from bnnconvert.train.losses.lipschitz import Lipschitz
from bnnconvert.train.losses.rad import Rad
from bnnconvert.values.progress import Silent
from tests.train.toys import Stop, StopAt, make_admm_student, make_student, run, same_weights

NOTHING = Outputs(torch.zeros(1, 2), torch.tensor([0]))


def inputs_of(student: nn.Module, loss: Rad, values: list[float]) -> float:
    """The loss where each channel of the only layer's input takes these values."""
    layer = student.get_submodule("conv")
    loss.begin_pass()
    x = torch.tensor(values, dtype=torch.float).reshape(-1, 1, 1, 1).expand(-1, 6, 3, 3)
    layer(x)
    return loss(NOTHING).item()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-1, 1], 1 + 0), ([2, 4], 8), ([-5, 5], 1), ([-3, 3], 0), ([0.3, 0.7], 1.69 + 0.21), ([1, 3], 3)],
)
def test_rad_in_closed_form(values: list[float], expected: float) -> None:
    """Means and deviations (0, 1), (3, 1), (0, 5), (0, 3), (0.5, 0.2) and (2, 1)."""
    student, loss = make_student().train(), Rad()
    loss.bind(student)
    assert inputs_of(student, loss, values) == pytest.approx(expected, abs=1e-5)
    loss.close()


def test_rad_is_a_mean_over_layers_and_looks_only_while_training_with_gradients() -> None:
    student, loss = make_student().train(), Rad()
    loss.bind(student)
    conv, hidden = student.get_submodule("conv"), student.get_submodule("hidden")
    conv(torch.zeros(2, 6, 3, 3))
    assert not loss.terms, "nobody has asked"
    loss.begin_pass()
    with torch.no_grad():
        conv(torch.zeros(2, 6, 3, 3))
    conv.eval()(torch.zeros(2, 6, 3, 3))
    assert loss(NOTHING).item() == 0
    loss.begin_pass()
    conv.train()(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 6, 3, 3))
    hidden(torch.tensor([2.0, 4.0]).reshape(2, 1).expand(2, 32))
    assert loss(NOTHING).item() == pytest.approx((1 + 8) / 2, abs=1e-5)
    assert loss(NOTHING).item() == 0, "a batch counts once"
    loss.begin_pass()
    loss.close()
    conv(torch.ones(2, 6, 3, 3))
    assert loss(NOTHING).item() == 0


def test_rad_is_refused_where_no_input_is_binary() -> None:
    student = make_student()
    for layer in student.modules():
        if isinstance(layer, BinaryLayer):
            layer.input_binarizer = None
    with pytest.raises(UsageError, match="'rad' is about binary inputs"):
        Rad().bind(student)


def test_a_run_with_rad_leaves_no_hook_and_spreads_what_was_degenerate() -> None:
    student = make_student()
    with torch.no_grad():
        student.get_submodule("stem_norm").bias.fill_(4.0)
        student.get_submodule("conv").input_binarizer.centre = False

    def offset() -> float:
        norm = student.get_submodule("stem_norm")
        return float((norm.bias.abs() - norm.weight.abs()).mean().detach())

    before = offset()
    losses = [{"name": "cross-entropy"}, {"name": "rad", "weight": 2.0}]
    _, report = run(student=student, training={"losses": losses, "optimizer": {"lr": 0.05}})
    assert offset() < before - 0.2
    assert report.history[-1].loss < report.history[0].loss
    assert not any(m._forward_pre_hooks for m in student.modules())


def plain(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.eye(3), 0.0),
        (2 * torch.eye(2), 18 / 2),
        (torch.eye(5)[:2], 0.0),  # orthonormal rows, of which the other Gram matrix would make 3 / 2
        (torch.eye(5)[:, :2], 0.0),
    ],
)
def test_lipschitz_in_closed_form(weight: torch.Tensor, expected: float) -> None:
    loss = Lipschitz()
    loss.bind(nn.Sequential(plain(weight), nn.ReLU(), plain(torch.eye(2))))
    assert loss(NOTHING).item() == pytest.approx(expected)


def test_lipschitz_takes_the_weight_with_its_scale_and_leaves_a_latent_one_alone() -> None:
    layer = BinaryLinear(
        nn.Parameter(torch.tensor([[0.3, -0.7, 0.2, 0.8]])),
        None,
        weight_binarizer=ScaledSignWeight(estimator=Clip()),
        input_binarizer=None,
    )
    loss = Lipschitz()
    loss.bind(layer)
    assert loss(NOTHING).item() == 0  # alpha = 1/2, so the row has length 1
    set_stage(layer, weights=False, inputs=True)
    assert loss(NOTHING).item() == pytest.approx((1.26 - 1) ** 2 / 2)


ADMM = {
    "losses": [{"name": "cross-entropy"}, {"name": "admm", "weight": 4.0}],
    "optimizer": {"name": "extragradient", "lr": 0.05},
    "stages": [{"share": 0.7, "weights": False}, {"share": 0.3, "frozen": 1.0}],
}


def test_admm_draws_float_weights_to_their_targets_and_stops_when_they_are_binary() -> None:
    student = make_admm_student()
    layer = student.get_submodule("conv")
    binarizer, distances, signs = layer.weight_binarizer, [], []

    class Look(Silent):
        def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
            weight = layer.weight.detach()
            distances.append(float((weight - project(weight)).norm() / weight.norm()))
            signs.append(weight > 0)

    run(student=student, training=ADMM | {"epochs": 6}, progress=Look())
    first = round(0.7 * 36)
    assert distances[first - 1] < distances[0] / 2
    assert distances[first:] == pytest.approx([0.0] * (36 - first), abs=1e-5)
    assert all(torch.equal(signs[first], later) for later in signs[first:])
    assert not binarizer.dual.any()


@pytest.mark.parametrize("at", [3, 10, 14])
def test_admm_goes_on_exactly_from_any_step(tmp_path: Path, at: int) -> None:
    whole, _ = run(student=make_admm_student(), training=ADMM)
    with pytest.raises(Stop):
        run(tmp_path, student=make_admm_student(), training=ADMM, progress=StopAt(at), checkpoint_seconds=0.0)
    resumed, _ = run(tmp_path, student=make_admm_student(), training=ADMM, resume=True)
    assert same_weights(whole, resumed)


def test_admm_without_its_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="'admm' is about weights of that name"):
        Admm().bind(make_student())
    student, losses = make_student(), [{"name": "feature-match", "at": ["conv"]}, {"name": "admm"}]
    with pytest.raises(UsageError, match="there are none"):
        run(student=student, training={"losses": losses})
    assert not any(m._forward_hooks for m in student.modules())
