"""Losses about the student itself: what reaches a sign, and the weights behind it."""

import pytest
import torch
from torch import nn

from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses import Outputs
from bnnconvert.train.losses.rad import Rad
from tests.train.toys import make_student, run

NOTHING = Outputs(torch.zeros(1, 2), torch.tensor([0]))


def inputs_of(student: nn.Module, loss: Rad, values: list[float]) -> float:
    """The loss where each channel of the only layer's input takes these values."""
    layer = student.get_submodule("conv")
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
    with torch.no_grad():
        conv(torch.zeros(2, 6, 3, 3))
    conv.eval()(torch.zeros(2, 6, 3, 3))
    assert loss(NOTHING).item() == 0
    conv.train()(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 6, 3, 3))
    hidden(torch.tensor([2.0, 4.0]).reshape(2, 1).expand(2, 32))
    assert loss(NOTHING).item() == pytest.approx((1 + 8) / 2, abs=1e-5)
    assert loss(NOTHING).item() == 0, "a batch counts once"
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
