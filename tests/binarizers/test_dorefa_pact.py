"""DoReFa-Net and PACT against the closed forms of the literature notes."""

import pytest
import torch
from torch import nn

from bnnconvert.binarizers.dorefa import DorefaInput, DorefaWeight
from bnnconvert.binarizers.pact import FLOOR, PactInput


def test_dorefa_one_bit_weights_have_one_scale_and_pass_the_gradient() -> None:
    w, g = torch.tensor([[0.5, -0.25, 0.0, 1.0]], requires_grad=True), torch.tensor([[1.0, 2, 3, 4]])
    value = DorefaWeight(bits=1)(w)
    (value * g).sum().backward()
    assert value.tolist() == [[0.4375, -0.4375, 0.4375, 0.4375]]
    assert torch.equal(w.grad, g)


def test_dorefa_scale_is_that_of_the_layer_and_not_of_the_filter() -> None:
    (plane,) = DorefaWeight(bits=1).planes(torch.tensor([[1.0, 1.0], [3.0, -3.0]]))
    assert plane.scale is not None
    assert plane.scale.tolist() == [2.0, 2.0]


def test_dorefa_two_bit_weights() -> None:
    w = torch.linspace(-3, 3, 25).reshape(1, -1)
    value = DorefaWeight(bits=2)(w)
    torch.testing.assert_close(value.unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    unit = w.tanh() / (2 * w.tanh().abs().max()) + 0.5
    torch.testing.assert_close(value, 2 * (unit * 3).round() / 3 - 1)


def test_dorefa_weight_gradient_goes_through_tanh_and_its_maximum() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (DorefaWeight(bits=3)(w) * g).sum().backward()
    v = w.detach().clone().requires_grad_()
    ((v.tanh() / v.tanh().abs().max()) * g).sum().backward()
    torch.testing.assert_close(w.grad, v.grad)
    assert torch.equal(DorefaWeight(bits=3).relaxed(v).detach(), (v.tanh() / (2 * v.tanh().abs().max()) + 0.5) * 2 - 1)


def test_dorefa_survives_a_layer_of_zeros() -> None:
    for bits in (1, 2):
        w = torch.zeros(2, 3, requires_grad=True)
        DorefaWeight(bits=bits)(w).sum().backward()
        assert w.grad is not None
        assert w.grad.isfinite().all()


def test_dorefa_inputs() -> None:
    x = torch.tensor([[-0.1, 0.0, 0.5, 1.0, 1.1, 1 / 6]], requires_grad=True)
    value = DorefaInput(6, bits=2)(x)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([[0, 0, 2 / 3, 1, 1, 0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 1, 0, 1]]
    assert DorefaInput(6, bits=1)(torch.tensor([[0.5, 0.51]])).tolist() == [[0, 1]]  # ties to even


def test_pact() -> None:
    binarizer = PactInput(4, bits=2, clip=2.0)
    x = torch.tensor([[-1.0, 0.5, 1.1, 3.0]], requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    for form, expected in ((binarizer, [0, 2 / 3, 4 / 3, 2]), (binarizer.relaxed, [0, 0.5, 1.1, 2])):
        x.grad = binarizer.clip.grad = None
        value = form(x)
        (value * g).sum().backward()
        assert value[0].tolist() == pytest.approx(expected)
        assert x.grad is not None
        assert x.grad.tolist() == [[0, 2, 4, 0]]
        assert binarizer.clip.grad is not None
        assert binarizer.clip.grad.item() == 8


def test_pact_at_the_ends_of_its_range() -> None:
    x = torch.tensor([[0.0, 2.0]], requires_grad=True)
    binarizer = PactInput(2, bits=2, clip=2.0)
    binarizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 0]]  # 1{0 <= x < a}
    assert binarizer.clip.grad.item() == 1  # 1{x >= a}


def test_pact_has_a_floor_below_which_the_level_still_learns() -> None:
    binarizer = PactInput(1, bits=2)
    nn.init.constant_(binarizer.clip, -0.5)
    value = binarizer(torch.tensor([[1.0], [-1.0]]))
    value.sum().backward()
    assert value.flatten().tolist() == pytest.approx([FLOOR, 0])
    assert binarizer.clip.grad.item() == 1


def test_pact_starts_at_the_least_squared_error_or_where_it_is_told_to() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    fitted, told, dead = PactInput(3), PactInput(3, clip=8.0, fit=False), PactInput(3)
    for binarizer in (fitted, told):
        binarizer.calibrate(x)
    dead.calibrate(-x.abs())
    positive = x.relu()

    def error(level: float) -> float:
        return float(((positive * 3 / level).clamp(0, 3).round() * level / 3 - positive).square().mean())

    best = min((error(level), level) for level in torch.linspace(0.5, 4, 200).tolist())[1]
    assert fitted.clip.item() == pytest.approx(best, abs=0.1)
    assert (told.clip.item(), dead.clip.item()) == (8.0, 10.0)
