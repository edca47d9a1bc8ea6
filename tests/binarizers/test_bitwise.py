"""Bitwise networks against the literature notes: tanh in the first phase, signs and whole gradients in the second."""

from pathlib import Path

import pytest
import torch
from torch import nn

import bnnconvert
from bnnconvert.binarizers.bitwise import BitwiseInput, BitwiseWeight
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.packed import packed_layer
from bnnconvert.recipe import parse_recipe, recipe_text
from bnnconvert.train import clip_latent, set_stage
from tests.networks import perceptron


def layer_of(weight: list[list[float]], bias: list[float], *, sparsity: float = 0.0) -> BinaryLinear:
    layer = BinaryLinear(
        nn.Parameter(torch.tensor(weight)),
        nn.Parameter(torch.tensor(bias)),
        weight_binarizer=BitwiseWeight(sparsity=sparsity),
        input_binarizer=BitwiseInput(len(weight[0])),
    )
    layer.weight_binarizer.calibrate(layer.weight)
    return layer


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


def test_a_sparsity_leaves_the_smallest_weights_and_biases_at_zero() -> None:
    layer = layer_of([[-0.9, -0.1, 0.2, 0.8]], [1.0], sparsity=0.5)
    x = torch.tensor([[1.0, 1.0, -1.0, 1.0]], requires_grad=True)
    out = layer(x)
    assert layer.effective_weight().tolist() == [[-1, 0, 0, 1]]
    assert out.item() == 1 - 1 + 1
    out.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 1, -1, 1]]  # as if none were 0
    assert x.grad is not None
    assert x.grad.tolist() == [[-1, 0, 0, 1]]
    layer.bias.data.fill_(0.2)  # not above the bound
    assert layer(x).item() == 0
    planes = layer.weight_planes()
    assert [p.pm1.tolist() for p in planes] == [[[-1, 1, 1, 1]], [[-1, -1, -1, 1]]]
    assert layer.eval()(x).item() == 0


def test_the_share_of_zeros_stays_what_it_is_while_weights_move() -> None:
    layer = layer_of([[1.0, 2.0, 3.0, 4.0]], [0.0], sparsity=0.25)
    assert layer.effective_weight().tolist() == [[0, 1, 1, 1]]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, -0.5, 1.0]]))
    clip_latent(layer)
    assert layer.effective_weight().tolist() == [[1, 1, 0, 1]]
    set_stage(layer, weights=False, inputs=False)
    with torch.no_grad():
        layer.weight.mul_(0.01)
    clip_latent(layer)
    set_stage(layer, weights=True, inputs=True)
    assert layer.effective_weight().tolist() == [[1, 1, 0, 1]]


def test_a_sparse_network_is_exported_and_proven(tmp_path: Path) -> None:
    text = recipe_text("bitwise").replace(
        'weights = { name = "bitwise" }', 'weights = { name = "bitwise", sparsity = 0.5 }'
    )
    torch.manual_seed(0)
    student = bnnconvert.convert(perceptron(), parse_recipe(text, where="mine.toml"), input_shape=(1, 1, 8, 8))
    bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = student.model.eval()(x)
    got = torch.from_numpy(bnnconvert.Session(tmp_path / "m.packed.safetensors").run(x.numpy()))
    assert torch.equal(got, expected)
    assert torch.equal(expected, expected.round())


def test_a_packed_layer_adds_the_sign_of_the_bias() -> None:
    packed = packed_layer(layer_of([[0.1, -0.1]], [-0.4]).eval(), "fc")
    assert packed.affine.bias.tolist() == [-1]
