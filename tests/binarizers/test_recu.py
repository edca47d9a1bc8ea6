"""ReCU: the quantile and its schedule, the clamp's gradient, inputs in units of their deviation."""

import math

import pytest
import torch

from bnnconvert.binarizers.recu import RecuWeight
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.binarizers.standardized_sign import StandardizedSignInput
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.ede import Ede
from bnnconvert.estimators.identity import Identity


def make(shape: tuple[int, ...]) -> RecuWeight:
    return RecuWeight(shape, estimator=Identity())


def test_tau_goes_from_its_least_to_its_greatest_along_an_exponential() -> None:
    binarizer = make((1, 4))
    assert float(binarizer.tau) == pytest.approx(0.85)
    for progress, expected in ((0.0, 0.85), (0.5, 0.85 + 0.14 * (math.sqrt(math.e) - 1) / (math.e - 1)), (1.0, 0.99)):
        binarizer.advance(progress)
        assert float(binarizer.tau) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "ratio"), [(0.0, 1.20397), (1.0, 3.91202)])
def test_the_clamp_stands_at_the_laplace_quantile(progress: float, ratio: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    weight[0, 0, 0, 0] = 1e3  # one weight so far out that it is clamped at any tau
    binarizer = make(weight.shape)
    binarizer.advance(progress)
    rows = weight.flatten(1)
    free = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True) * 2 * math.sqrt(2)
    limit = ratio * free.abs().mean()
    clamped = binarizer.standardised(weight)
    assert clamped.max().item() == pytest.approx(limit.item(), rel=1e-4)
    torch.testing.assert_close(clamped.flatten(1), free.clamp(-limit, limit), rtol=1e-3, atol=1e-4)


def test_signs_are_those_of_the_centred_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3) + 0.7
    (plane,) = make(weight.shape).planes(weight)
    assert torch.equal(plane.pm1 > 0, weight >= weight.mean((1, 2, 3), keepdim=True))


def test_gradient_is_that_of_the_standardised_weight_and_none_beyond_the_clamp() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3).requires_grad_()
    g = torch.randn(weight.shape)
    binarizer = make(weight.shape)
    binarizer(weight).backward(g)
    copy = weight.detach().clone().requires_grad_()
    rows = copy.flatten(1)
    free = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + 1e-5).sqrt() * 2 * math.sqrt(2)
    limit = -free.detach().abs().mean() * math.log(2 - 2 * 0.85)
    inside = free.detach().abs() <= limit
    assert 0.5 < inside.float().mean() < 1
    (free * inside * g.flatten(1)).sum().backward()
    assert weight.grad is not None
    assert copy.grad is not None
    torch.testing.assert_close(weight.grad, copy.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 1), (3, 1, 1, 1)])
def test_filters_without_deviation_stay_finite(shape: tuple[int, ...]) -> None:
    weight = torch.full(shape, 0.3, requires_grad=True)
    out = make(shape)(weight)
    out.sum().backward()
    assert out.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_the_scale_starts_where_the_centred_filter_has_its_least_error() -> None:
    binarizer = make((1, 4))
    binarizer.calibrate(torch.tensor([[4.0, 2, 1, 1]]))
    assert binarizer.scale.tolist() == [1.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 7, 1, 1), (3, 7), (2, 1)])
def test_standardized_inputs_have_the_signs_of_the_input_and_the_gradient_of_the_quotient(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    estimator = ApproxSign()
    x = torch.randn(shape) * 0.3 + 0.1
    x = (x.contiguous(memory_format=layout) if x.dim() == 4 else x).requires_grad_()
    g = torch.randn(shape)
    binarizer = StandardizedSignInput(shape[1], estimator=estimator)
    for training in (True, False):
        out = binarizer.train(training)(x)
        assert torch.equal(out, SignInput(shape[1], estimator=estimator)(x))
    out.backward(g)
    copy = x.detach().clone().requires_grad_()
    axes = list(range(1, copy.dim()))
    count = copy[0].numel()
    quotient = copy / (copy.var(axes, correction=min(1, count - 1), keepdim=True) + 1e-5).sqrt()
    estimator(quotient).backward(g)
    assert x.grad is not None
    assert copy.grad is not None
    assert x.grad.abs().sum() > 0 or count == 1
    torch.testing.assert_close(x.grad, copy.grad, rtol=1e-4, atol=1e-5)


def test_the_schedule_reaches_the_estimator_inside() -> None:
    from bnnconvert.train import advance_schedules

    binarizer = StandardizedSignInput(3, estimator=Ede())
    advance_schedules(binarizer, 1.0)
    (ede,) = (m for m in binarizer.modules() if isinstance(m, Ede))
    assert float(ede.t) == pytest.approx(10)


def test_deviations_are_measured_in_single_precision() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(2, 4, 16, 16) * 0.2 + 2, torch.randn(2, 4, 16, 16)
    binarizer = StandardizedSignInput(4, estimator=Identity())
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.to(torch.bfloat16).to(dtype).requires_grad_()
        binarizer(leaf).backward(g.to(dtype))
        assert leaf.grad is not None
        gradients.append(leaf.grad.float())
    # In bfloat16 itself a deviation of a tenth of the mean would be lost in the rounding of the squares.
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()
