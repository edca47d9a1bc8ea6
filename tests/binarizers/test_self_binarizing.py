"""Self-binarizing operands: the tanh that sharpens, and the sign at the end."""

import pytest
import torch
from torch import nn

from bnnconvert.binarizers.self_binarizing import SelfBinarizingInput, SelfBinarizingWeight
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.train import advance_schedules

X = [-0.5, 0.01, 0.5]


@pytest.mark.parametrize(
    ("progress", "values", "slopes"),
    [
        (0.0, [-0.462117, 0.0099997, 0.462117], [0.786448, 0.9999, 0.786448]),
        (0.25, [-0.9999092, 0.0996680, 0.9999092], [0.0018158, 9.9006629, 0.0018158]),
        (0.75, [-1, 1, 1], [0, 0, 0]),
        (0.9, [-1, 1, 1], [0, 0, 0]),
    ],
)
def test_float_stages_run_the_tanh_of_the_moment(progress: float, values: list[float], slopes: list[float]) -> None:
    options = {"start": 1.0, "end": 1000.0, "until": 0.75}
    for binarizer in (SelfBinarizingWeight(**options), SelfBinarizingInput(3, **options)):
        advance_schedules(binarizer, progress)
        x = torch.tensor([X], requires_grad=True)
        out = binarizer.relaxed(x)
        out.sum().backward()
        assert x.grad is not None
        assert out[0].tolist() == pytest.approx(values, abs=1e-5)
        assert x.grad[0].tolist() == pytest.approx(slopes, abs=1e-4)
        twin = torch.tensor([X], requires_grad=True)
        signs = binarizer(twin)
        signs.sum().backward()
        assert signs.tolist() == [[-1, 1, 1]]
        torch.testing.assert_close(twin.grad, x.grad, rtol=1e-4, atol=1e-6)


def test_the_last_stage_changes_nothing_that_the_tanh_has_not() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 8)
    layer = BinaryLinear.from_float(
        linear, weight_binarizer=SelfBinarizingWeight(), input_binarizer=SelfBinarizingInput(64)
    ).eval()
    advance_schedules(layer, 1.0)
    x = torch.randn(16, 64)
    with torch.no_grad():  # move everything out of the middle, as training does
        linear.weight.add_(linear.weight.sign() * 0.01)
        x += x.sign() * 0.01
    layer.weights_are_binary = layer.inputs_are_binary = False
    soft = layer(x)
    layer.weights_are_binary = layer.inputs_are_binary = True
    torch.testing.assert_close(layer(x), soft, rtol=0, atol=1e-5)
