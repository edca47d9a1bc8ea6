"""The k-bit relaxation of the sign: its levels, its gradient, and that one bit is the sign."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnnconvert.layers.levels import filter_levels, levels


def test_levels_and_gradient_in_closed_form() -> None:
    x = torch.tensor([-1.5, -1.0, -0.7, -0.6, 0.0, 0.3, 0.7, 1.0, 1.1], requires_grad=True)
    q = levels(x, 2)
    torch.testing.assert_close(q.detach(), torch.tensor([-3.0, -3, -3, -1, 1, 1, 3, 3, 3]) / 3)
    (q * torch.arange(9)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_there_are_two_to_the_bits_levels_and_no_value_moves_by_more_than_half_a_step(bits: int) -> None:
    x = torch.linspace(-1, 1, 10_001)
    q = levels(x, bits)
    assert len(q.unique()) == 2**bits
    assert (q - x).abs().max() <= 1 / (2**bits - 1) + 1e-6
    torch.testing.assert_close(levels(q, bits), q)


def test_one_bit_is_the_sign_also_next_to_zero() -> None:
    x = torch.tensor([-2.0, -1e-9, -0.0, 0.0, 1e-9, 0.3])
    assert levels(x, 1).tolist() == [-1, -1, 1, 1, 1, 1]


@given(st.floats(1e-3, 1e3))
def test_weight_levels_keep_the_scale_of_each_filter(scale: float) -> None:
    w = torch.tensor([[3.0, -1.1, 0.2, -3.0], [0.0, 0.0, 0.0, 0.0]])
    q = filter_levels(w * scale, 2)
    torch.testing.assert_close(q, torch.tensor([[3.0, -1, 1, -3], [0, 0, 0, 0]]) * scale)


def test_the_gradient_reaches_the_largest_weight_too() -> None:
    w = torch.tensor([[0.7, -0.3, 0.1]], requires_grad=True)
    filter_levels(w, 4).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.ones(1, 3))
