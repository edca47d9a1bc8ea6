"""AdaBin: the two values of weights and inputs, their gradients, and the sum of products they stand for."""

import math

import pytest
import torch
from torch.nn import functional as F

from bnnconvert.binarizers.adabin import AdabinInput, AdabinWeight
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.estimators.ede import Ede
from bnnconvert.layers.conv2d import BinaryConv2d


def inputs(centre: float, distance: float, channels: int = 4) -> AdabinInput:
    binarizer = AdabinInput(channels, estimator=ApproxSign())
    with torch.no_grad():
        binarizer.centre.fill_(centre)
        binarizer.distance.fill_(distance)
    return binarizer


def test_weights_take_mean_plus_or_minus_deviation() -> None:
    binarizer = AdabinWeight(estimator=ApproxSign())
    weight = torch.tensor([[3.0, 1, -1, -3]])
    signs, ones = binarizer.planes(weight)
    assert signs.pm1.tolist() == [[1, 1, -1, -1]]
    assert ones.pm1.tolist() == [[1, 1, 1, 1]]
    assert signs.scale is not None
    assert ones.scale is not None
    assert signs.scale.tolist() == pytest.approx([math.sqrt(5)])
    assert ones.scale.tolist() == [0]
    moved = binarizer(weight + 10)
    torch.testing.assert_close(moved, binarizer(weight) + 10)


def test_weight_gradient_goes_through_sign_centre_and_distance() -> None:
    torch.manual_seed(0)
    weight, ede = torch.randn(5, 3, 3, 3).requires_grad_(), Ede()
    ede.advance(0.6)
    g = torch.randn(weight.shape)
    AdabinWeight(estimator=ede)(weight).backward(g)
    twin = weight.detach().clone().requires_grad_()
    centre = twin.mean((1, 2, 3), keepdim=True)
    distance = ((twin - centre) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
    u = (twin - centre) / distance
    soft = float(ede.k) * torch.tanh(float(ede.t) * u)
    signs = torch.where(u >= 0, 1.0, -1.0)
    ((signs - soft).detach() + soft).mul(distance).add(centre).backward(g)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-4, atol=1e-5)


def test_a_filter_of_equal_weights_stays_finite() -> None:
    weight = torch.full((2, 3), 0.3, requires_grad=True)
    out = AdabinWeight(estimator=ApproxSign())(weight)
    out.sum().backward()
    assert out.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("distance", [1.5, -0.5])
def test_input_gradients_in_closed_form(distance: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    binarizer = inputs(0.3, distance)
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn(x.shape)
    y = binarizer(x)
    y.backward(g)
    a = abs(distance)
    u = (x.detach() - 0.3) / a
    slope = (2 - 2 * u.abs()).clamp(min=0)
    torch.testing.assert_close(y, a * torch.where(u >= 0, 1.0, -1.0) + 0.3)
    torch.testing.assert_close(x.grad, g * slope)
    torch.testing.assert_close(binarizer.centre.grad, (g * (1 - slope)).sum())
    by_distance = (g * (u.sign() - u * slope)).sum()
    torch.testing.assert_close(binarizer.distance.grad, by_distance * math.copysign(1, distance), rtol=1e-4, atol=1e-5)


def test_planes_are_the_same_map_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(2, 4, 3, 3).requires_grad_(), torch.randn(2, 4, 3, 3)
    binarizer = inputs(-0.2, 0.7)
    wanted = (x, binarizer.centre, binarizer.distance)
    quick = binarizer(x)
    summed = sum(plane.pm1 * plane.scale for plane in binarizer.planes(x))
    torch.testing.assert_close(quick, summed)
    for ours, plain in zip(torch.autograd.grad(quick, wanted, g), torch.autograd.grad(summed, wanted, g), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_bits_are_compared_with_the_centre_itself() -> None:
    centre = torch.tensor(0.3)
    below = torch.nextafter(centre, torch.tensor(-1.0))
    x = torch.stack([centre, below, below / 2]).reshape(1, 3)
    binarizer = inputs(0.3, 1e38, 3)  # so far apart that the quotient of a small difference is zero
    assert sign_pm1((x - centre) / 1e38).tolist() == [[1, 1, -1]]
    assert binarizer.planes(x)[0].pm1.tolist() == [[1, -1, -1]]


def test_inputs_start_at_mean_and_deviation_of_the_first_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 5) * 3 + 2
    binarizer = AdabinInput(4, estimator=ApproxSign())
    binarizer.calibrate(x)
    assert binarizer.centre.item() == pytest.approx(x.mean().item(), abs=1e-5)
    assert binarizer.distance.item() == pytest.approx(x.std(correction=0).item(), abs=1e-5)
    as_printed = AdabinInput(4, estimator=ApproxSign(), fit=False)
    as_printed.calibrate(x)
    assert (as_printed.centre.item(), as_printed.distance.item()) == (0, 1)


def test_a_float_stage_clips_to_the_two_values() -> None:
    relaxed = inputs(1.0, 0.5, 3).relaxed(torch.tensor([[0.0, 1.25, 4.0]]))
    assert relaxed.tolist() == [[0.5, 1.25, 1.5]]


@pytest.mark.parametrize("pad_bit", ["zero", "one"])
def test_four_products_of_planes_are_the_convolution_of_the_values(pad_bit: str) -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d.from_float(
        torch.nn.Conv2d(4, 6, 3, padding=1, stride=2),
        weight_binarizer=AdabinWeight(estimator=ApproxSign()),
        input_binarizer=inputs(0.4, 0.9),
        pad_bit=pad_bit,  # type: ignore[arg-type]
    ).eval()
    x = torch.randn(3, 4, 7, 7)
    values, filters = layer.input_binarizer(x), layer.weight_binarizer(layer.weight)
    padded = F.pad(values, (1, 1, 1, 1), value=0.0 if pad_bit == "zero" else 1.3)
    torch.testing.assert_close(layer(x), F.conv2d(padded, filters, layer.bias, 2), rtol=1e-5, atol=1e-5)
