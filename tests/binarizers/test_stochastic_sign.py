"""BinaryConnect's stochastic weights: drawn in training, signs in evaluation."""

import pytest
import torch

from bnnconvert.binarizers.sign import SignWeight
from bnnconvert.estimators.identity import Identity


def test_the_probability_of_plus_one_is_half_of_one_plus_the_weight() -> None:
    binarizer = SignWeight(estimator=Identity(), stochastic=True)
    torch.manual_seed(0)
    weight = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    drawn = binarizer(weight.expand(100_000, 7))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    expected = weight.clamp(-1, 1)
    assert drawn.mean(dim=0).tolist() == pytest.approx(expected.tolist(), abs=0.01)
    assert torch.equal(drawn[:, [0, 1, 5, 6]].amin(dim=0), drawn[:, [0, 1, 5, 6]].amax(dim=0))


def test_the_gradient_passes_and_evaluation_draws_nothing() -> None:
    binarizer = SignWeight(estimator=Identity(), stochastic=True)
    weight = torch.tensor([[-1.5, -0.2, 0.0, 0.4]], requires_grad=True)
    (binarizer(weight) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 2, 3, 4]]
    state = torch.get_rng_state()
    assert binarizer.eval()(weight).tolist() == [[-1, -1, 1, 1]]
    assert torch.equal(torch.get_rng_state(), state)
