"""BiPer: the bit is the sign of the sine, the gradient the sine's, the frequency fitted once."""

import math

import pytest
import torch

from bnnconvert.binarizers.biper import BiperWeight
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.packed import packed_layer

WEIGHT = torch.tensor([[0.1, 0.2, 0.0, -0.1]])


def test_bits_follow_the_sine_and_not_the_weight() -> None:
    binarizer = BiperWeight((1, 4), frequency=20.0)
    weight = WEIGHT.clone().requires_grad_()
    (plane,) = binarizer.planes(weight)
    assert plane.pm1.tolist() == [[1, -1, 1, -1]]
    plane.pm1.backward(torch.tensor([[1.0, 2, 3, 4]]))
    assert weight.grad is not None
    expected = [20 * math.cos(2), 40 * math.cos(4), 60, 80 * math.cos(-2)]
    assert weight.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_first_stage_is_the_scaled_sine_itself() -> None:
    binarizer = BiperWeight((2, 4), frequency=20.0)
    weight = torch.cat([WEIGHT, 2 * WEIGHT])
    binarizer.calibrate(weight)
    out = binarizer.relaxed(weight)
    torch.testing.assert_close(out, torch.sin(20 * weight) * torch.tensor([[0.1], [0.2]]))


def test_a_fitted_frequency_keeps_the_signs_of_a_pretrained_layer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3) * 0.3
    binarizer = BiperWeight(weight.shape)
    binarizer.calibrate(weight)
    deviation = weight.square().mean().sqrt()
    assert binarizer.frequency.item() == pytest.approx(math.pi / 4 / deviation.item(), rel=1e-5)
    kept = (binarizer(weight) >= 0) == (weight >= 0)
    assert kept[weight.abs() < 3.99 * deviation].all()
    fitted = binarizer.frequency.clone()
    binarizer.calibrate(2 * weight)  # as a later stage does
    assert torch.equal(binarizer.frequency, fitted)


def test_what_is_packed_is_the_sign_of_the_sine() -> None:
    linear = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(WEIGHT)
    layer = BinaryLinear.from_float(linear, weight_binarizer=BiperWeight((1, 4), frequency=20.0), input_binarizer=None)
    packed = packed_layer(layer.eval(), "fc")
    assert packed.dot.weight.flatten().tolist() == [0b0101]
