"""LAB against the closed forms of the literature notes."""

import copy

import pytest
import torch

from bnnconvert.binarizers.lab import LabWeight


def test_the_scale_weighs_magnitudes_by_the_root_of_the_second_moment() -> None:
    binarizer = LabWeight((2, 2))
    weight = torch.tensor([[0.2, -0.4], [0.6, -0.8]])
    assert binarizer(weight).tolist() == [pytest.approx([0.5, -0.5]), pytest.approx([0.5, -0.5])]  # v = 0: mean |W|
    binarizer.moment.copy_(torch.tensor([[0.01, 0.04], [0.09, 0.16]]))
    (plane,) = binarizer.planes(weight)
    assert plane.pm1.tolist() == [[1, -1], [1, -1]]
    assert plane.scale is not None
    assert plane.scale.tolist() == pytest.approx([0.6, 0.6])  # one for the layer
    binarizer.moment.fill_(7.0)
    assert binarizer(weight).abs().unique().tolist() == pytest.approx([0.5])


def test_the_gradient_of_the_scaled_weight_is_passed_on_and_its_square_noted() -> None:
    binarizer = LabWeight((1, 3), decay=0.75)
    weight = torch.tensor([[-1.5, 0.0, 0.3]], requires_grad=True)
    upstream = torch.tensor([[1.0, -2.0, 4.0]])
    for expected in (0.25, 0.25 + 0.75 * 0.25):
        weight.grad = None
        (binarizer(weight) * upstream).sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, upstream)
        torch.testing.assert_close(binarizer.moment, expected * upstream.square())
    assert binarizer.clip == 1.0


def test_a_step_sees_the_moments_of_those_before_and_evaluation_leaves_them() -> None:
    binarizer = LabWeight((1, 2))
    weight = torch.tensor([[0.2, 0.4]], requires_grad=True)
    first = binarizer(weight)
    assert first.tolist() == [pytest.approx([0.3, 0.3])]
    (first * torch.tensor([[0.0, 1.0]])).sum().backward()
    assert binarizer(weight).tolist() == [pytest.approx([0.4, 0.4])]
    before = copy.deepcopy(binarizer.state_dict())
    binarizer.eval()(weight).sum().backward()
    assert torch.equal(binarizer.moment, before["moment"])


def test_a_gradient_that_overflows_leaves_the_moments_as_they_are() -> None:
    binarizer = LabWeight((1, 2))
    weight = torch.tensor([[0.2, 0.4]], requires_grad=True)
    (binarizer(weight) * torch.tensor([[torch.inf, 1.0]])).sum().backward()
    assert binarizer.moment[0, 0] == 0
    assert binarizer.moment[0, 1] > 0
