"""ADMM's projection and dual update against closed forms."""

import pytest
import torch

from bnnconvert.binarizers.admm import AdmmWeight, project
from bnnconvert.estimators.clip import Clip


def test_the_projection_is_the_sign_times_one_mean_magnitude() -> None:
    value = torch.tensor([[0.9, -0.4, 0.1], [0.0, 0.0, 0.0]])
    assert project(value[:1]).tolist() == [pytest.approx([1.4 / 3, -1.4 / 3, 1.4 / 3])]
    alpha = 1.4 / 6
    assert project(value).flatten().tolist() == pytest.approx([alpha, -alpha, *[alpha] * 4])
    # It is the nearest: no other scale of these signs is nearer.
    for other in (0.9, 1.1):
        assert (value - project(value)).norm() < (value - other * project(value)).norm()


def test_targets_and_duals_follow_the_weights_every_few_steps() -> None:
    binarizer = AdmmWeight((1, 3), estimator=Clip(), every=2)
    weight = torch.tensor([[0.9, -0.4, 0.1]])
    binarizer.calibrate(weight)
    assert weight.tolist() == [pytest.approx([0.9, -0.4, 0.1])], "a conversion keeps the float weights"
    alpha = 1.4 / 3
    distance = torch.tensor([[0.9 - alpha, -0.4 + alpha, 0.1 - alpha]])
    assert binarizer.penalty(weight).item() == pytest.approx(distance.square().sum().item() / 2)
    binarizer.after_step(weight, binary=False)
    assert not binarizer.dual.any()
    binarizer.after_step(weight, binary=False)
    torch.testing.assert_close(binarizer.dual, distance)  # lambda <- 0 + W - G
    for _ in range(2):
        binarizer.after_step(weight, binary=False)
    value = weight + distance
    torch.testing.assert_close(binarizer.target, project(value))
    torch.testing.assert_close(binarizer.dual, value - project(value))
    assert binarizer.penalty(weight).item() == pytest.approx(
        (weight - project(value) + value - project(value)).square().sum().item() / 2
    )


def test_the_end_of_the_penalty_is_the_projection_of_the_weight() -> None:
    binarizer = AdmmWeight((1, 3), estimator=Clip(), every=1)
    weight = torch.tensor([[0.9, -0.4, 0.1]])
    binarizer.calibrate(weight)
    for _ in range(2):
        binarizer.after_step(weight, binary=False)
    assert binarizer.target[0, 2] < 0, "the duals have run ahead of a weight that does not move"
    expected = project(weight.clone())
    binarizer.calibrate(weight)
    torch.testing.assert_close(weight, expected)
    torch.testing.assert_close(binarizer(weight), weight)
    binarizer.after_step(weight, binary=True)
    assert not binarizer.dual.any()
    weight[0, 2] = 5.0
    binarizer.calibrate(weight)
    assert weight[0, 2] == 5.0, "only a penalty has an end"
