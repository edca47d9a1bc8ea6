"""Each estimator: the sign convention, and the closed form of its gradient."""

import math

import pytest
import torch

from bnnconvert.estimators import ESTIMATORS
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.base import Estimator, sign_pm1
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.dsq import Dsq
from bnnconvert.estimators.ede import Ede
from bnnconvert.estimators.sine import Sine
from bnnconvert.estimators.swish_sign import SwishSign
from bnnconvert.estimators.tanh import Tanh
from bnnconvert.estimators.training_aware import TrainingAware
from bnnconvert.estimators.triangle import Triangle


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


def test_swish_sign_in_closed_form() -> None:
    expected = [5.0, 3.0236612, -0.0846216, -0.1949923]
    assert gradient(SwishSign(beta=5.0), [0.0, 0.2, 0.5, 1.0]) == pytest.approx(expected, abs=2e-6)
    assert gradient(SwishSign(beta=1.0), [1.0, -1.0]) == pytest.approx([0.6047322] * 2, abs=1e-6)


def test_swish_sign_changes_its_sign_once_and_stays_finite() -> None:
    turn = 2.39936 / 5
    before, after = gradient(SwishSign(beta=5.0), [turn - 1e-4, turn + 1e-4])
    assert before > 0 > after
    assert gradient(SwishSign(beta=5.0), [40.0, -1e30, math.inf]) == [0, 0, 0]


def test_tanh_sharpens_from_start_to_end() -> None:
    tanh = Tanh(start=1.0, end=1000.0, until=0.5)
    assert gradient(tanh, [0.0]) == [1.0]
    tanh.advance(1 / 6)
    assert gradient(tanh, [0.0, 0.01, 0.5]) == pytest.approx([10, 9.9006629, 0.0018158], abs=1e-5)
    assert tanh.soft(torch.tensor([-0.5, 0.01, 0.5])).tolist() == pytest.approx([-0.9999092, 0.0996680, 0.9999092])
    for progress in (0.5, 0.9):
        tanh.advance(progress)
        assert float(tanh.nu) == 1000


def test_tanh_without_an_end_stays_as_it_is() -> None:
    tanh = Tanh(start=3.0)
    tanh.advance(0.7)
    assert gradient(tanh, [0.0, 0.5]) == pytest.approx([3.0, 3 * (1 - math.tanh(1.5) ** 2)])


def test_triangle_of_width_one_is_approx_sign_and_others_its_dilations() -> None:
    values = [-1.5, -1.0, -0.3, 0.0, 0.7, 2.0]
    assert gradient(Triangle(), values) == pytest.approx(gradient(ApproxSign(), values))
    assert gradient(Triangle(width=3.0), [0.0, 1.5, -3.0, 3.1]) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_sine_is_a_cosine_arch() -> None:
    assert gradient(Sine(), [0.0, 0.5, -1.0, 1.0, 1.01, 3.0]) == pytest.approx(
        [math.pi / 2, math.pi / 2 * math.cos(math.pi / 4), 0, 0, 0, 0], abs=1e-6
    )
    assert gradient(Sine(frequency=20.0), [0.05, 0.1, 0.25]) == pytest.approx([20 * math.cos(1), 0, 0], abs=1e-5)


def test_dsq_in_closed_form() -> None:
    assert gradient(Dsq(alpha=0.2), [0.0, 0.5, -1.0, 1.0, 1.1]) == pytest.approx(
        [1.3732654, 1.0299490, 0.4943755, 0.4943755, 0], abs=1e-6
    )
    assert gradient(Dsq(alpha=0.2, limit=2.0), [1.0, 2.1]) == pytest.approx([1.0299490 / 2, 0], abs=1e-6)


def test_training_aware_narrows_and_keeps_its_height() -> None:
    aware = TrainingAware()
    assert (float(aware.t), float(aware.k)) == pytest.approx((0.01, 100))
    assert gradient(aware, [0.0, 100.0]) == pytest.approx([math.sqrt(2), math.sqrt(2) - 1], abs=1e-5)
    aware.advance(2 / 3)
    assert (float(aware.t), float(aware.k)) == pytest.approx((1, 1))
    aware.advance(1.0)
    assert gradient(aware, [0.0, -0.1, 0.2]) == pytest.approx([10 * math.sqrt(2), 10 * math.sqrt(2) - 10, 0], abs=1e-4)


def test_training_aware_for_inputs_starts_at_its_floor() -> None:
    aware = TrainingAware(floor=1.0)
    for progress in (0.0, 0.5):
        aware.advance(progress)
        assert gradient(aware, [0.0, 1.0, -1.5]) == pytest.approx([math.sqrt(2), math.sqrt(2) - 1, 0], abs=1e-6)
    aware.advance(1.0)
    assert float(aware.t) == pytest.approx(10)


@pytest.mark.parametrize(
    "estimator",
    [
        SwishSign(beta=5.0),
        SwishSign(beta=10.0),
        Tanh(start=4.0),
        Triangle(width=0.5),
        Triangle(width=3.0),
        Sine(),
        Sine(frequency=20.0),
        Dsq(alpha=0.05),
        Dsq(alpha=0.4, limit=2.5),
        TrainingAware(floor=1.0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_surrogate_is_the_derivative_of_a_step_of_two(estimator: Estimator) -> None:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    slope = estimator.gradient(x, torch.ones_like(x))
    assert torch.trapezoid(slope, x).item() == pytest.approx(2, abs=1e-3)
    torch.testing.assert_close(slope, slope.flip(0))
