"""Bitwise networks against the literature notes: tanh in the first phase, signs and whole gradients in the second."""

import pytest
import torch
from torch import nn

from bnnconvert.binarizers.bitwise import BitwiseInput, BitwiseWeight
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.packed import packed_layer
from bnnconvert.train import set_stage


def layer_of(weight: list[list[float]], bias: list[float]) -> BinaryLinear:
    return BinaryLinear(
        nn.Parameter(torch.tensor(weight)),
        nn.Parameter(torch.tensor(bias)),
        weight_binarizer=BitwiseWeight(),
        input_binarizer=BitwiseInput(len(weight[0])),
    )


def test_phase_one_compresses_weights_biases_and_activations() -> None:
    layer = layer_of([[0.5, -1.0]], [0.0])
    set_stage(layer, weights=False, inputs=False)
    x = torch.tensor([[20.0, 20.0]])  # tanh(20) = 1
    assert layer(x).item() == pytest.approx(-0.29948, abs=1e-5)
    layer.bias.data.fill_(0.3)
    out = layer(x)
    assert out.item() == pytest.approx(-0.29948 + 0.291313, abs=1e-5)
    out.backward()
    torch.testing.assert_close(layer.weight.grad, 1 - torch.tanh(torch.tensor([[0.5, -1.0]])).square())
    torch.testing.assert_close(layer.bias.grad, 1 - torch.tanh(torch.tensor([0.3])).square())


def test_phase_two_is_signs_and_passes_every_gradient() -> None:
    layer = layer_of([[-0.9, -0.1, 0.2, 3.0]], [-0.4])
    x = torch.tensor([[1.0, 5.0, -1.0, 0.0]], requires_grad=True)
    out = layer(x)
    assert out.item() == -1 - 1 - 1 + 1 - 1
    out.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 1, -1, 1]]
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [1]
    assert x.grad is not None
    assert x.grad.tolist() == [[-1, -1, 1, 1]]


def test_a_packed_layer_adds_the_sign_of_the_bias() -> None:
    packed = packed_layer(layer_of([[0.1, -0.1]], [-0.4]).eval(), "fc")
    assert packed.affine.bias.tolist() == [-1]
