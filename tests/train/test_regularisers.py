"""Regularisers of weights: closed forms, and what they are about."""

import math

import pytest
import torch

from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.binarizers.biper import BiperWeight
from bnnconvert.binarizers.learned_scale import LearnedScaleWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.train.losses import Outputs
from bnnconvert.train.losses.scale_regularizer import ScaleRegularizer
from bnnconvert.train.losses.sine_regularizer import SineRegularizer
from tests.train.toys import make_student

Regulariser = ScaleRegularizer | SineRegularizer
NOTHING = Outputs(torch.zeros(1, 2), torch.tensor([0]))


def regularised(binarizer: WeightBinarizer, weight: list[float], loss: Regulariser) -> tuple[float, BinaryLinear]:
    """Value and gradients of a regulariser of one linear layer with one output."""
    linear = torch.nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([weight]))
    layer = BinaryLinear.from_float(linear, weight_binarizer=binarizer, input_binarizer=None)
    loss.bind(torch.nn.Sequential(layer))
    value = loss(NOTHING)
    value.backward()
    return value.item(), layer


@pytest.mark.parametrize(
    ("norm", "value", "by_weight", "by_scale"), [("l1", 1.5, [-1, -1], 0), ("l2", 1.25, [-1, -2], -1)]
)
def test_scale_regularizer_in_closed_form(norm: str, value: float, by_weight: list[float], by_scale: float) -> None:
    binarizer = LearnedScaleWeight((1, 2), estimator=Clip())
    loss = ScaleRegularizer(norm=norm)  # type: ignore[arg-type]
    got, layer = regularised(binarizer, [0.5, -2.0], loss)
    assert got == value
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [by_weight]
    assert binarizer.scale.grad is not None
    assert binarizer.scale.grad.tolist() == [by_scale]
    layer.weights_are_binary = False
    assert loss(NOTHING).item() == 0


@pytest.mark.parametrize(("towards", "value", "sign"), [("zeros", 0.5, 1), ("crests", 0.5, -1)])
def test_sine_regularizer_pulls_to_zeros_or_crests(towards: str, value: float, sign: int) -> None:
    quarter = math.pi / 4 / 20
    binarizer = BiperWeight((1, 2), frequency=20.0)
    got, layer = regularised(binarizer, [quarter, -3 * quarter], SineRegularizer(towards=towards))  # type: ignore[arg-type]
    assert got == pytest.approx(value)
    assert layer.weight.grad is not None
    # d/dW mean sin^2 = w sin(2 w W) / n: both weights stand half-way between a zero and a crest.
    assert layer.weight.grad[0].tolist() == pytest.approx([10 * sign, 10 * sign], rel=1e-4)


@pytest.mark.parametrize("loss", [ScaleRegularizer(), SineRegularizer(towards="crests")], ids=["scale", "sine"])
def test_a_regulariser_without_its_weights_is_refused(loss: Regulariser) -> None:
    with pytest.raises(UsageError, match="no layer has them"):
        loss.bind(make_student())
