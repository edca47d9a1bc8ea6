"""Circulant filters: turns of the ring, the gradient summed over them, and a layer that stores the small filter."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert.binarizers.circulant import CirculantWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.identity import Identity
from bnnconvert.recipe import parse_recipe, recipe_text
from tests.networks import Residual, randomise

FILTER = torch.tensor([[[[1.0, 2, 3], [8, 9, 4], [7, 6, 5]]]])
"""Ring 1 to 8 clockwise, 9 in the middle."""


def circulant(*, outputs: int = 4, inputs: int = 1, **options: object) -> CirculantWeight:
    return CirculantWeight((outputs, inputs, 3, 3), estimator=Identity(), **options)  # type: ignore[arg-type]


def test_a_quarter_turn_is_two_steps_of_the_ring_and_four_are_none() -> None:
    turned = circulant().relaxed(FILTER)
    assert turned[0, 0].tolist() == FILTER[0, 0].tolist()
    assert turned[1, 0].tolist() == [[7, 8, 1], [6, 9, 2], [5, 4, 3]]
    for k in range(4):
        assert torch.equal(turned[k, 0], FILTER[0, 0].rot90(-k))
    again = circulant().relaxed(turned[1:2])
    assert torch.equal(again[3], turned[0])


def test_eight_orientations_turn_by_one_step_each() -> None:
    turned = circulant(outputs=8, orientations=8).relaxed(FILTER)
    assert turned[1, 0].tolist() == [[8, 1, 2], [7, 9, 3], [6, 5, 4]]
    assert torch.equal(turned[2], circulant().relaxed(FILTER)[1])


def test_every_tap_s_gradient_is_the_sum_over_the_turned_copies() -> None:
    weight = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1, 1]).reshape(1, 1, 3, 3).requires_grad_()  # mean magnitude 1
    out = circulant()(weight)
    out.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((1, 1, 3, 3), 4.0))
    weight.grad = None
    upstream = torch.randn(4, 1, 3, 3)
    (circulant()(weight) * upstream).sum().backward()
    torch.testing.assert_close(weight.grad, sum(upstream[k : k + 1].rot90(k, (2, 3)) for k in range(4)))


def test_turning_and_taking_signs_commute() -> None:
    torch.manual_seed(0)
    weight, binarizer = torch.randn(2, 3, 3, 3), circulant(outputs=8, inputs=3)
    (plane,) = binarizer.planes(weight)
    assert torch.equal(plane.pm1, binarizer.relaxed(weight).sign())
    assert plane.scale is not None
    torch.testing.assert_close(plane.scale, binarizer.relaxed(weight).abs().mean((1, 2, 3)))


def test_input_orientations_may_turn_along() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 8, 3, 3)
    turned = circulant(inputs=8, permute_inputs=True).relaxed(weight)
    for k in range(4):
        for feature in range(2):
            for m in range(4):
                expected = weight[0, feature * 4 + (m - k) % 4].rot90(-k)
                assert torch.equal(turned[k, feature * 4 + m], expected)


@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 1, 1), (6, 4, 5, 5)])
def test_what_is_not_3x3_is_binarized_as_it_is(shape: tuple[int, ...]) -> None:
    binarizer, weight = CirculantWeight(shape, estimator=Identity()), torch.randn(shape)
    assert torch.equal(binarizer.latent(weight), weight)
    (plane,) = binarizer.planes(weight)
    assert torch.equal(plane.pm1, weight.sign())


@pytest.mark.parametrize(("shape", "permute"), [((6, 4, 3, 3), False), ((8, 6, 3, 3), True)])
def test_a_layer_without_room_for_the_orientations_is_refused(shape: tuple[int, ...], permute: bool) -> None:
    with pytest.raises(UsageError, match=f"a layer of {shape[1]} inputs and {shape[0]} outputs has no 4 orientations"):
        CirculantWeight(shape, estimator=Identity(), permute_inputs=permute)


def narrow() -> str:
    return recipe_text("cbcn").replace("factor = 2", "factor = 1.25")


def test_the_refusal_names_the_layer() -> None:
    with pytest.raises(UsageError, match=r"layer1\.conv1: circulant: a layer of 10 inputs and 10 outputs"):
        bnnconvert.convert(Residual(), parse_recipe(narrow(), where="narrow.toml"), input_shape=Residual.input_shape)


def test_a_layer_stores_a_quarter_of_the_filters_and_exports_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = bnnconvert.convert(randomise(Residual()), "cbcn", input_shape=Residual.input_shape)
    layer = student.model.get_submodule("layer1.conv1")
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.shape == (4, 16, 3, 3)
    x: Tensor = torch.randn(2, 16, 8, 8)
    assert layer(x).shape == (2, 16, 8, 8)
    report = bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    packed = next(p for p in report.layers if p.layer == "layer1.conv1")
    assert packed.binary_weights == 16 * 16 * 9
