"""Balanced weights: the notes' cases, near balance, and the projected gradient."""

import pytest
import torch

from bnnconvert.binarizers.balanced import BalancedWeight
from bnnconvert.estimators.identity import Identity


@pytest.mark.parametrize("weight", [[3.0, 1, -1, -3], [4.0, 2, 1, 1]])
def test_signs_are_of_the_centred_filter(weight: list[float]) -> None:
    (plane,) = BalancedWeight(estimator=Identity()).planes(torch.tensor([weight]))
    assert plane.pm1.tolist() == [[1, 1, -1, -1]]
    assert plane.scale is not None
    centred = torch.tensor(weight) - sum(weight) / 4
    assert plane.scale.tolist() == [centred.abs().mean().item()]


def test_filters_are_nearly_balanced_whatever_their_mean() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3) + torch.linspace(-2, 2, 32).reshape(-1, 1, 1, 1)
    (plane,) = BalancedWeight(estimator=Identity()).planes(weight)
    assert plane.pm1.mean((1, 2, 3)).abs().max() < 0.2


def test_the_gradient_is_projected() -> None:
    weight = torch.tensor([[3.0, 1, -1, -3]], requires_grad=True)
    BalancedWeight(estimator=Identity())(weight).backward(torch.tensor([[1.0, 2, 3, 6]]))
    assert weight.grad is not None
    assert weight.grad.tolist() == [[-4, -2, 0, 6]]  # a = 2, and the mean of g is 3
