"""FQN against the closed forms of the literature notes."""

import pytest
import torch

from bnnconvert.binarizers.fqn import BATCHES, FqnInput, FqnWeight


def test_range_is_the_quantiles_and_holds_zero() -> None:
    binarizer = FqnInput(1000, quantile=0.999)
    binarizer.calibrate(torch.arange(1000.0).reshape(1, -1))
    low, high = binarizer.bounds.tolist()
    assert low == 0  # the quantile is 1, and zero must stay a level
    assert high == pytest.approx(998, abs=1)
    binarizer.calibrate(-torch.arange(1000.0).reshape(1, -1))
    assert binarizer.bounds.tolist() == [pytest.approx(-998, abs=1), 0]


def test_zero_is_exactly_zero_at_every_width() -> None:
    torch.manual_seed(0)
    for bits in range(1, 9):
        inputs, weights = FqnInput(50, bits=bits), FqnWeight(bits=bits)
        inputs.calibrate(torch.randn(100, 50) * 3 + 1)
        assert inputs.eval()(torch.zeros(1, 50)).eq(0).all()
        w = torch.randn(4, 50) + torch.tensor([[0.0], [5.0], [-5.0], [0.5]])
        w[:, 7] = 0
        assert weights(w)[:, 7].eq(0).all()


def test_inputs_and_their_gradient() -> None:
    binarizer = FqnInput(5, bits=2, quantile=1.0)
    binarizer.calibrate(torch.tensor([[-1.0, 2.0]]))  # step 1, zero point 1
    x = torch.tensor([[-1.2, -0.6, 0.4, 1.7, 2.1]], requires_grad=True)
    value = binarizer.eval()(x)
    value.sum().backward()
    assert value[0].tolist() == [-1, -1, 0, 2, 2]
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]


def test_weights_have_a_range_per_output_channel() -> None:
    w = torch.tensor([[-1.0, 0.4, 0.6, 2.0], [0.0, 0.1, 0.26, 0.3]], requires_grad=True)
    value = FqnWeight(bits=2)(w)
    (value * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([[-1, 0, 1, 2], [0, 0.1, 0.3, 0.3]]))
    assert w.grad is not None
    assert w.grad.tolist() == [[1, 2, 3, 4]] * 2


def test_the_range_follows_the_first_batches_of_training_and_then_stays() -> None:
    binarizer = FqnInput(2, quantile=1.0)
    binarizer.calibrate(torch.tensor([[-1.0, 1.0]]))
    x = torch.tensor([[-2.0, 3.0]])
    binarizer.eval()(x)
    assert binarizer.bounds.tolist() == [-1, 1]
    binarizer.train()(x)
    assert binarizer.bounds.tolist() == pytest.approx([-1.1, 1.2])
    for _ in range(BATCHES):
        binarizer(x)
    settled = binarizer.bounds.clone()
    assert settled.tolist() == pytest.approx([-2 + 0.9 ** (BATCHES - 1), 3 - 2 * 0.9 ** (BATCHES - 1)], rel=1e-4)
    binarizer(x * 10)
    assert torch.equal(binarizer.bounds, settled)
    resumed = FqnInput(2, quantile=1.0)
    resumed.load_state_dict(binarizer.state_dict())
    resumed.train()(x * 10)
    assert torch.equal(resumed.bounds, settled)


def test_without_calibration_the_first_batch_sets_the_range() -> None:
    binarizer = FqnInput(2, quantile=1.0).train()
    binarizer(torch.tensor([[-4.0, 8.0]]))
    assert binarizer.bounds.tolist() == [-4, 8]


def test_a_frozen_batch_norm_passes_through_the_quantizer_of_weights() -> None:
    """Folded first and quantized then, or the other way round, whatever the sign of the factor."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([[3.0], [0.01], [-1.5], [-0.2], [1.0], [-7.0]])
    for bits in (1, 2, 4, 8):
        quantizer = FqnWeight(bits=bits)
        torch.testing.assert_close(quantizer(weight * factor), quantizer(weight) * factor)
