"""HWGQ, TSQ, WRPN and ternary weights against the closed forms of the literature notes."""

import math

import pytest
import torch
from torch import Tensor

from bnnconvert.binarizers.base import InputBinarizer
from bnnconvert.binarizers.half_wave import best_step
from bnnconvert.binarizers.hwgq import HwgqInput
from bnnconvert.binarizers.ternary import TernaryWeight
from bnnconvert.binarizers.tsq import TsqInput
from bnnconvert.binarizers.wrpn import WrpnInput, WrpnWeight


def values_and_mask(binarizer: InputBinarizer, x: list[float]) -> tuple[list[float], list[float]]:
    leaf = torch.tensor([x], requires_grad=True)
    value = binarizer(leaf)
    value.sum().backward()
    assert leaf.grad is not None
    return value[0].tolist(), leaf.grad[0].tolist()


def test_hwgq() -> None:
    values, mask = values_and_mask(HwgqInput(8), [-1, 0, 0.1, 0.80, 0.81, 1.34, 1.35, 9])
    assert values == pytest.approx([i * 0.5388 for i in (0, 0, 1, 1, 2, 2, 3, 3)], abs=2e-4)
    assert mask == [0, 0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("bits", range(1, 9))
def test_hwgq_levels_are_lloyd_s(bits: int) -> None:
    """Re-derived by minimising the error itself, integrated numerically."""
    x = torch.linspace(0, 8, 80001, dtype=torch.float64)
    density = (-x.square() / 2).exp()

    def error(step: float) -> float:
        quantized = (x / step - 0.5).ceil().clamp(1, 2**bits - 1) * step
        return float(((quantized - x).square() * density).sum())

    step = best_step(2**bits - 1)
    assert error(step) < min(error(step * 0.98), error(step * 1.02))
    assert HwgqInput(1, bits=bits)(torch.tensor([[1e-6, 100.0]]))[0].tolist() == pytest.approx(
        [step, (2**bits - 1) * step]
    )


def test_known_steps() -> None:
    assert best_step(1) == pytest.approx(math.sqrt(2 / math.pi))
    assert best_step(3) == pytest.approx(0.5388, abs=1e-4)
    assert best_step(7) == pytest.approx(0.3217, abs=1e-4)
    assert best_step(3, 0.32) == pytest.approx(0.648, abs=1e-3)
    table = {0.16: 0.5914, 0.32: 0.6487, 0.49: 0.7139, 0.68: 0.7889}  # the TSQ paper's
    assert {e: pytest.approx(best_step(3, e), abs=2e-4) for e in table} == table


def test_tsq_is_sparse_and_hwgq_at_one_half() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 1000)
    assert torch.equal(TsqInput(1000, sparsity=0.5)(x), HwgqInput(1000)(x))
    values = TsqInput(1000, sparsity=0.625)(x)
    assert (values == 0).float().mean().item() == pytest.approx(0.625, abs=5e-3)
    assert values.unique().tolist() == pytest.approx([i * 0.6483 for i in range(4)], abs=1e-3)


def test_tsq_passes_the_gradient_between_zero_and_its_threshold() -> None:
    values, mask = values_and_mask(TsqInput(4), [-0.1, 0.3, 0.33, 2.5])
    assert values == pytest.approx([0, 0, 0.6483, 3 * 0.6483], abs=1e-3)
    assert mask == [0, 1, 1, 0]


def test_wrpn_weights() -> None:
    w = torch.tensor([[0.5, -0.5, 0.1, -1.2, 1.0, 0.2]])
    assert WrpnWeight(bits=3)(w)[0].tolist() == pytest.approx([2 / 3, -2 / 3, 0, -1, 1, 1 / 3])
    assert WrpnWeight(bits=2)(w)[0].tolist() == [0, 0, 0, -1, 1, 0]
    assert WrpnWeight(bits=1)(torch.tensor([[0.5, -1.5, 0.0, 1.0]])).tolist() == [[0.75, -0.75, 0.75, 0.75]]


def test_wrpn_weight_gradient_stops_at_the_ends_of_the_range() -> None:
    w = torch.tensor([[-1.2, -1.0, 0.3, 1.0, 1.1]], requires_grad=True)
    (WrpnWeight(bits=3)(w) * torch.arange(1.0, 6)).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [[0, 2, 3, 4, 0]]


def test_wrpn_weight_needs_no_offset_plane() -> None:
    for bits in range(2, 9):
        top = 2 ** (bits - 1) - 1
        w = torch.arange(-top, top + 1).reshape(1, -1) / top
        planes = WrpnWeight(bits=bits).planes(w)
        assert len(planes) == bits
        total = sum(p.pm1 * p.scale for p in planes)
        torch.testing.assert_close(total, w)


def test_wrpn_range_is_fitted_so_that_small_weights_do_not_vanish() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 50) / 50
    fitted, told = WrpnWeight(bits=2), WrpnWeight(bits=2, fit=False)
    for binarizer in (fitted, told):
        binarizer.calibrate(w)
    assert torch.equal(told(w), torch.zeros_like(w))

    def error(value: Tensor) -> Tensor:
        return (value - w).square().sum()

    assert error(fitted(w)) < error(torch.zeros_like(w)) / 2
    assert "bound" in fitted.state_dict()


def test_wrpn_inputs() -> None:
    values, mask = values_and_mask(WrpnInput(4, bits=1), [-0.1, 0.4, 0.6, 1.2])
    assert (values, mask) == ([0, 0, 1, 1], [0, 1, 1, 0])


def test_otwa() -> None:
    # Scores 0.81, 0.98, 0.75: the two largest are kept.
    w = torch.tensor([[0.9, -0.5, 0.1]], requires_grad=True)
    value = TernaryWeight()(w)
    (value * torch.tensor([[1.0, 2, 3]])).sum().backward()
    assert value[0].tolist() == pytest.approx([0.7, -0.7, 0])
    assert w.grad is not None
    assert w.grad.tolist() == [[1, 2, 3]]


def test_otwa_is_the_best_ternary_filter_of_all() -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 6)
    found = (TernaryWeight()(w) - w).square().sum(dim=1)
    all_codes = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1])] * 6)[:, None]
    scale = (all_codes * w).sum(dim=2) / all_codes.square().sum(dim=2).clamp(min=1)
    best = (all_codes * scale[..., None] - w).square().sum(dim=2).amin(dim=0)
    torch.testing.assert_close(found, best)


def test_twn() -> None:
    w = torch.tensor([[1.0, -0.8, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0]])  # mean 0.5, so the threshold is 0.35
    assert TernaryWeight(threshold="twn")(w).tolist() == [pytest.approx([0.9, -0.9, 0, 0]), [0] * 4]


def test_ternary_planes() -> None:
    w = torch.tensor([[0.9, -0.5, 0.1, -0.1]])
    first, second = TernaryWeight().planes(w)
    assert first.pm1.tolist() == [[1, -1, 1, 1]]
    assert second.pm1.tolist() == [[1, -1, -1, -1]]
    assert first.scale is not None
    assert first.scale.tolist() == pytest.approx([0.35])
