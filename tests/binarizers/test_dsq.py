"""DSQ at one bit: the closed form, the gradients of levels and sharpness, and what starts where."""

import pytest
import torch
from torch import Tensor

from bnnconvert.binarizers.dsq import DsqInput, DsqWeight, soft_sign
from bnnconvert.estimators.dsq import Dsq


def as_printed(x: Tensor, low: Tensor, high: Tensor, alpha: Tensor) -> Tensor:
    """The paper's formulas for one bit, with a straight-through sign."""
    clipped = torch.minimum(torch.maximum(x, low), high)
    delta, middle = high - low, (low + high) / 2
    k, s = torch.log(2 / alpha - 1) / delta, 1 / (1 - alpha)
    phi = s * torch.tanh(k * (clipped - middle))
    signs = torch.where(x >= middle, 1.0, -1.0)
    return low + delta * ((signs - phi).detach() + phi + 1) / 2


def inputs(centre: float, half: float, alpha: float = 0.2, *, offset: bool = True) -> DsqInput:
    binarizer = DsqInput(4, alpha=alpha, offset=offset)
    with torch.no_grad():
        binarizer.centre.fill_(centre)
        binarizer.level.fill_(half)
    return binarizer


def test_the_segment_and_its_slope_in_closed_form() -> None:
    alpha = torch.tensor(0.2)
    assert soft_sign(torch.tensor([0.5, 1.0, 2.0, -1.0]), alpha).tolist() == pytest.approx([0.625, 1, 1, -1])
    x = torch.tensor([[0.0, 0.5, 1.0, 1.1]], requires_grad=True)
    y = inputs(0.0, 1.0)(x)
    assert y.tolist() == [[1, 1, 1, 1]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([1.3732654, 1.0299490, 0.4943755, 0], abs=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("centre", "half", "alpha"), [(0.3, 0.8, 0.2), (-0.5, 1.5, 0.4), (0.0, 0.4, 0.05)])
def test_input_gradients_are_those_of_the_paper_s_formula(
    centre: float, half: float, alpha: float, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    binarizer = inputs(centre, half, alpha)
    x = torch.randn(2, 4, 5, 5).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn(x.shape)
    y = binarizer(x)
    y.backward(g)
    twin = x.detach().clone().requires_grad_()
    low, high, a = (torch.tensor(v, requires_grad=True) for v in (centre - half, centre + half, alpha))
    plain = as_printed(twin, low, high, a)
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5)
    plain.backward(g)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    assert low.grad is not None
    assert high.grad is not None
    assert a.grad is not None
    # low = centre - half, high = centre + half, alpha = sigmoid(sharpness) / 2
    torch.testing.assert_close(binarizer.centre.grad, low.grad + high.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(binarizer.level.grad, high.grad - low.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(binarizer.sharpness.grad, a.grad * alpha * (1 - 2 * alpha), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offset", [True, False])
def test_planes_are_the_same_map_with_the_same_gradients(offset: bool) -> None:
    torch.manual_seed(0)
    binarizer = inputs(0.2 * offset, -0.7, offset=offset)
    x, g = torch.randn(2, 4, 3, 3).requires_grad_(), torch.randn(2, 4, 3, 3)
    planes = binarizer.planes(x)
    assert len(planes) == 1 + offset
    quick, summed = binarizer(x), sum(plane.pm1 * plane.scale for plane in planes)
    torch.testing.assert_close(quick, summed)
    wanted = (x, *binarizer.parameters())
    assert len(wanted) == 3 + offset
    for ours, plain in zip(torch.autograd.grad(quick, wanted, g), torch.autograd.grad(summed, wanted, g), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_weights_are_symmetric_levels_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    weight, g = torch.randn(5, 3, 3, 3).requires_grad_(), torch.randn(5, 3, 3, 3)
    binarizer = DsqWeight(alpha=0.3)
    with torch.no_grad():
        binarizer.level.fill_(0.9)
    out = binarizer(weight)
    out.backward(g)
    twin = weight.detach().clone().requires_grad_()
    half, alpha = (torch.tensor(v, requires_grad=True) for v in (0.9, 0.3))
    plain = as_printed(twin, -half, half, alpha)
    plain.backward(g)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(weight.grad, twin.grad)
    torch.testing.assert_close(binarizer.level.grad, half.grad, rtol=1e-4, atol=1e-5)
    assert alpha.grad is not None
    torch.testing.assert_close(binarizer.sharpness.grad, alpha.grad * 0.3 * 0.4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, 0.6])
def test_its_signs_have_the_gradient_of_the_estimator_of_the_same_name(level: float) -> None:
    binarizer = inputs(0.0, level, 0.1, offset=False)
    x = torch.linspace(-1.5, 1.5, 32).reshape(8, 4).requires_grad_()
    (plane,) = binarizer.planes(x)
    plane.pm1.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, binarizer.estimator.gradient(x.detach(), torch.ones(8, 4)))
    torch.testing.assert_close(x.grad, Dsq(alpha=0.1, limit=level).gradient(x.detach(), torch.ones(8, 4)))


@pytest.mark.parametrize("sharpness", [-300.0, 300.0])
def test_the_distance_from_sign_stays_in_its_range(sharpness: float) -> None:
    binarizer = inputs(0.0, 1.0)
    with torch.no_grad():
        binarizer.sharpness.fill_(sharpness)
    x = torch.linspace(-2, 2, 40).reshape(10, 4).requires_grad_()
    binarizer(x).sum().backward()
    for gradient in (x.grad, binarizer.sharpness.grad, binarizer.level.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_levels_start_where_data_and_weights_lie() -> None:
    weights, both, middle = DsqWeight(), DsqInput(2), DsqInput(2, offset=False)
    weights.calibrate(torch.tensor([[0.5, -2.0], [1.0, 0.0]]))
    assert weights.level.item() == 2
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    both.calibrate(x)
    assert (both.centre.item(), both.level.item()) == (3, 1.5)
    middle.calibrate(x)
    assert (middle.centre.item(), middle.level.item()) == (0, 3)
    assert both.relaxed(torch.tensor([[0.0, 3.5], [9.0, 2.0]])).tolist() == [[1.5, 3.5], [4.5, 2.0]]
    assert both.sharpness.sigmoid().item() / 2 == pytest.approx(0.2)
