"""RBNN: rotations are rotations, their updates climb, and happen once an epoch."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from bnnconvert.binarizers.rbnn import RbnnWeight, nearest_square
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.estimators.identity import Identity

SHAPE = (16, 4, 3, 3)


def make(**options: int) -> RbnnWeight:
    return RbnnWeight(SHAPE, estimator=Identity(), **options)


def agreement(binarizer: RbnnWeight, weight: Tensor) -> float:
    rotated = binarizer.left.T @ binarizer.standardised(weight) @ binarizer.right
    return (sign_pm1(rotated) * rotated).sum().item()


def draw(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "factors"), [(36, (6, 6)), (576, (24, 24)), (72, (8, 9)), (7, (1, 7)), (1, (1, 1))])
def test_filters_become_matrices_as_square_as_they_can_be(count: int, factors: tuple[int, int]) -> None:
    assert nearest_square(count) == factors


def test_each_round_climbs_and_keeps_the_norm() -> None:
    weight, binarizer = draw(), make(rounds=1)
    reached = [agreement(binarizer, weight)]
    x = binarizer.standardised(weight)
    for _ in range(5):
        binarizer.rotate(x)
        reached.append(agreement(binarizer, weight))
        for r in (binarizer.left, binarizer.right):
            torch.testing.assert_close(r.T @ r, torch.eye(len(r)), rtol=0, atol=1e-5)
        rotated = binarizer.left.T @ x @ binarizer.right
        torch.testing.assert_close(rotated.norm(dim=(1, 2)), x.norm(dim=(1, 2)))
    assert all(later >= earlier - 1e-3 for earlier, later in pairwise(reached))
    assert reached[-1] > reached[0] * 1.02


def test_weights_that_are_binary_already_stay_where_they_are() -> None:
    weight = torch.where(draw() >= 0, 1.0, -1.0)
    weight[:, 0] = 1
    weight[:, 1] = -1  # each filter gets as many of each sign
    weight[:, 2] = -weight[:, 3]
    binarizer = make()
    binarizer.calibrate(weight)
    assert torch.equal(binarizer(weight), weight)


def test_gradient_goes_through_the_rotation() -> None:
    weight, g = draw().requires_grad_(), draw(1)
    binarizer = make()
    binarizer.calibrate(weight.detach())
    with torch.no_grad():
        binarizer.angle.fill_(math.asin(0.25))
    binarizer(weight).backward(g)
    left, right = binarizer.left, binarizer.right
    h = (g * binarizer.scale.detach().view(-1, 1, 1, 1)).view(16, 6, 6)
    twin = weight.detach().clone().requires_grad_()
    x = binarizer.standardised(twin)
    rotated = (left.T @ x @ right).detach()
    (x * (0.75 * h + 0.25 * left @ h @ right.T)).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, twin.grad, rtol=1e-4, atol=1e-5)
    expected = math.sqrt(1 - 0.25**2) * (h * (rotated - x.detach())).sum((1, 2))
    assert binarizer.angle.grad is not None
    torch.testing.assert_close(binarizer.angle.grad, expected, rtol=1e-4, atol=1e-4)


def test_rotations_follow_the_weights_once_an_epoch_and_in_training_only() -> None:
    binarizer, weight = make(), draw()
    binarizer.calibrate(weight)

    def left_after(w: Tensor) -> Tensor:
        binarizer.planes(w)
        return binarizer.left.clone()

    start = binarizer.left.clone()
    binarizer.train().advance(0.25)
    binarizer.eval()
    assert torch.equal(left_after(draw(1)), start)
    binarizer.train()
    first = left_after(draw(1))
    assert not torch.equal(first, start)
    assert torch.equal(left_after(draw(2)), first)
    binarizer.advance(0.5)
    assert not torch.equal(left_after(draw(2)), first)


def test_a_run_that_goes_on_does_not_rotate_twice_in_an_epoch() -> None:
    binarizer, weight = make().train(), draw()
    binarizer.advance(1 / 3)
    binarizer.planes(weight)
    resumed = make().train()
    resumed.load_state_dict(copy.deepcopy(binarizer.state_dict()))
    resumed.advance(1 / 3)
    resumed.planes(draw(1))
    assert torch.equal(resumed.left, binarizer.left)


@pytest.mark.parametrize("shape", [(4, 1), (3, 1, 1, 1)])
def test_filters_without_deviation_stay_finite(shape: tuple[int, ...]) -> None:
    weight = torch.full(shape, 0.3, requires_grad=True)
    binarizer = RbnnWeight(shape, estimator=Identity())
    binarizer.calibrate(weight.detach())
    out = binarizer(weight)
    out.sum().backward()
    assert out.isfinite().all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
