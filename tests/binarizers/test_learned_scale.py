"""The learned scale: where it starts, its gradient, and that it stays positive."""

import pytest
import torch

from bnnconvert.binarizers.learned_scale import LearnedScaleWeight
from bnnconvert.estimators.clip import Clip

WEIGHT = torch.tensor([[0.5, -2.0, 0.25, 0.25], [-0.5, 0.0, 4.0, 1.5]])


@pytest.mark.parametrize(
    ("per", "start", "expected"),
    [
        ("filter", "mean", [0.75, 1.5]),
        ("filter", "median", [0.25, 0.5]),
        ("layer", "mean", 1.125),
        ("layer", "median", 0.5),
    ],
)
def test_it_starts_at_the_mean_or_median_magnitude(per: str, start: str, expected: object) -> None:
    binarizer = LearnedScaleWeight((2, 4), estimator=Clip(), per=per, start=start)  # type: ignore[arg-type]
    binarizer.calibrate(WEIGHT)
    assert binarizer.scale.tolist() == expected


def test_gradients_of_weight_and_scale() -> None:
    binarizer = LearnedScaleWeight((2, 4), estimator=Clip())
    binarizer.calibrate(WEIGHT)
    w = WEIGHT.clone().requires_grad_()
    out = binarizer(w)
    assert out.tolist() == [[0.75, -0.75, 0.75, 0.75], [-1.5, 1.5, 1.5, 1.5]]
    out.backward(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    assert w.grad is not None
    assert w.grad.tolist() == [[0.75, 0, 2.25, 3.0], [7.5, 9.0, 0, 0]]
    assert binarizer.scale.grad is not None
    assert binarizer.scale.grad.tolist() == [1 - 2 + 3 + 4, -5 + 6 + 7 + 8]


def test_a_scale_below_zero_turns_no_sign_and_is_pushed_back() -> None:
    binarizer = LearnedScaleWeight((1, 2), estimator=Clip(), per="layer")
    with torch.no_grad():
        binarizer.scale.fill_(-0.5)
    out = binarizer(torch.tensor([[3.0, -3.0]]))
    assert out.tolist() == [[0.5, -0.5]]
    (-out[0, 0]).backward()  # asks for a larger scale
    assert binarizer.scale.grad is not None
    assert binarizer.scale.grad.item() == 1  # descent moves it further from zero, on the side where it is
