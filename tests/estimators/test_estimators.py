"""Each estimator: the sign convention, and the closed form of its gradient."""

import math

import pytest
import torch

from bnnconvert.estimators import ESTIMATORS
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.base import Estimator, sign_pm1
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.ede import Ede


def gradient(estimator: Estimator, values: list[float]) -> list[float]:
    x = torch.tensor(values, requires_grad=True)
    estimator(x).sum().backward()
    assert x.grad is not None
    return x.grad.tolist()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_forward_is_the_sign_convention(name: str) -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-40, -1e-40, math.nan, math.inf, -math.inf])
    assert ESTIMATORS[name]()(x).tolist() == [-1, 1, 1, 1, -1, -1, 1, -1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sign_keeps_type_and_layout(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=layout)
    y = sign_pm1(x)
    assert y.is_contiguous(memory_format=layout)
    assert torch.equal(y, torch.where(x >= 0, 1.0, -1.0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_shift_per_channel_is_an_addition_before_the_sign(name: str, layout: torch.memory_format) -> None:
    estimator = ESTIMATORS[name]()
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=layout).requires_grad_()
    by = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        x[0, :, 0, 0] = -by  # on the boundary, and one step to either side of it
        x[0, :, 0, 1] = torch.nextafter(-by, torch.full((3,), -torch.inf))
        x[0, :, 0, 2] = torch.nextafter(-by, torch.full((3,), torch.inf))
    g = torch.randn(2, 3, 4, 4)
    ours, theirs = estimator(x, by), estimator(x + by.view(-1, 1, 1))
    assert torch.equal(ours, theirs)
    assert ours.stride() == x.stride()
    for a, b in zip(torch.autograd.grad(ours, (x, by), g), torch.autograd.grad(theirs, (x, by), g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradient_scales_with_the_upstream_gradient(name: str) -> None:
    estimator = ESTIMATORS[name]()
    x, g = torch.randn(50), torch.randn(50)
    torch.testing.assert_close(estimator.gradient(x, 3 * g), 3 * estimator.gradient(x, g))


def test_clip_closed_and_open_differ_at_one_only() -> None:
    values = [-2.0, -1.0, -0.3, 0.0, 0.7, 1.0, 1.5]
    assert gradient(Clip(), values) == [0, 1, 1, 1, 1, 1, 0]
    assert gradient(Clip(closed=False), values) == [0, 0, 1, 1, 1, 0, 0]


def test_approx_sign_is_a_triangle() -> None:
    assert gradient(ApproxSign(), [-1.5, -1.0, -0.5, 0.0, 0.25, 1.0]) == [0, 0, 1, 2, 1.5, 0]


def test_ede_follows_the_papers_schedule() -> None:
    ede = Ede(t_min=0.1, t_max=10.0)
    assert gradient(ede, [0.0, 1.0]) == pytest.approx([1.0, 0.9900663], abs=1e-6)
    ede.advance(0.5)
    assert (float(ede.t), float(ede.k)) == pytest.approx((1.0, 1.0))
    ede.advance(399 / 400)
    assert float(ede.t) == pytest.approx(9.88553, abs=1e-4)
    ede.advance(1.0)
    assert gradient(ede, [0.0, 0.1, 1.0]) == pytest.approx([10.0, 4.1997434, 8.2446e-8], abs=1e-6)


def test_ede_schedule_is_saved() -> None:
    ede, other = Ede(), Ede()
    ede.advance(0.75)
    other.load_state_dict(ede.state_dict())
    assert float(other.t) == float(ede.t)
    assert float(other.k) == float(ede.k)
