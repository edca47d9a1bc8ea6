"""The trainable layers: training and evaluation form agree, padding, stages, gradients, RPReLU."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.prelu import ChannelPReLU
from bnnconvert.layers.rprelu import RPReLU
from bnnconvert.train.latent import planes_together
from tests.students import TwoPlanes


def conv(*, inputs: str = "sign", pad_bit: str = "zero", bias: bool = True) -> BinaryConv2d:
    binarizer = {"sign": SignInput(6, estimator=Clip()), "none": None, "two": TwoPlanes(6)}[inputs]
    return BinaryConv2d.from_float(
        nn.Conv2d(6, 4, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=2, bias=bias),
        weight_binarizer=ScaledSignWeight(estimator=Clip()),
        input_binarizer=binarizer,
        pad_bit=pad_bit,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("inputs", ["sign", "none", "two"])
@pytest.mark.parametrize("pad_bit", ["zero", "one"])
def test_training_and_evaluation_forms_agree(inputs: str, pad_bit: str) -> None:
    torch.manual_seed(0)
    layer, x = conv(inputs=inputs, pad_bit=pad_bit), torch.randn(3, 6, 7, 9)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-5, atol=1e-5)


def test_evaluation_may_take_planes_together() -> None:
    torch.manual_seed(0)
    layer, x = conv(inputs="two").eval(), torch.randn(3, 6, 7, 9)
    calls: list[Tensor] = []
    layer.linear_map = lambda *given, **rest: calls.append(given[0]) or BinaryConv2d.linear_map(layer, *given, **rest)  # type: ignore[func-returns-value, method-assign]
    apart = layer(x)
    assert len(calls) == 2
    with planes_together(layer):
        torch.testing.assert_close(layer(x), apart, rtol=1e-5, atol=1e-5)
    assert len(calls) == 3
    assert torch.equal(layer(x), apart)


@pytest.mark.parametrize("pad_bit", ["zero", "one"])
def test_filters_times_windows_are_the_map_of_a_convolution(pad_bit: str) -> None:
    torch.manual_seed(0)
    layer, x = conv(pad_bit=pad_bit), torch.randn(3, 6, 7, 9)
    windows = layer.windows(x, one=0.3)
    assert windows.shape == (3, 2, 27, 4 * 5)
    made = layer.weight.reshape(2, 2, 27) @ windows
    torch.testing.assert_close(made, layer.positions(layer.linear_map(x, layer.weight, one=0.3)))


@pytest.mark.parametrize("shape", [(4, 10), (4, 5, 10), (4, 2, 3, 10)])
def test_filters_times_windows_are_the_map_of_a_linear_layer(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = (
        BinaryLinear.from_float(
            nn.Linear(10, 6), weight_binarizer=ScaledSignWeight(estimator=Clip()), input_binarizer=None
        ),
        torch.randn(shape),
    )
    windows = layer.windows(x)
    assert windows.shape[:3] == (4, 1, 10)
    torch.testing.assert_close(layer.weight @ windows, layer.positions(layer.linear_map(x, layer.weight)))


def test_evaluation_form_is_scale_times_an_exact_integer() -> None:
    torch.manual_seed(0)
    layer, x = conv(bias=False).eval(), torch.randn(3, 6, 7, 9)
    with torch.no_grad():
        acc = F.conv2d(
            torch.where(x >= 0, 1.0, -1.0), torch.where(layer.weight >= 0, 1.0, -1.0), None, 2, (1, 2), (1, 2), 2
        )
        assert torch.equal(acc, acc.round())
        assert torch.equal(layer(x), acc * layer.planes_scale(layer.weight_planes())[0].reshape(-1, 1, 1))


def test_zero_padding_is_zero_and_one_padding_is_one() -> None:
    def ones(pad_bit: str) -> Tensor:
        layer = BinaryConv2d.from_float(
            nn.Conv2d(1, 1, 3, padding=1, bias=False),
            weight_binarizer=ScaledSignWeight(estimator=Clip()),
            input_binarizer=SignInput(1, estimator=Clip()),
            pad_bit=pad_bit,  # type: ignore[arg-type]
        ).eval()
        nn.init.ones_(layer.weight)
        return layer(torch.ones(1, 1, 3, 3)).detach()[0, 0]

    assert ones("zero").tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert ones("one").tolist() == [[9, 9, 9]] * 3


def test_stages_switch_operands_one_by_one() -> None:
    torch.manual_seed(0)
    layer, x = conv(bias=False).train(), torch.randn(2, 6, 7, 9)
    layer.weights_are_binary = False
    torch.testing.assert_close(layer(x), layer.linear_map(torch.where(x >= 0, 1.0, -1.0), layer.weight))
    layer.inputs_are_binary = False
    torch.testing.assert_close(layer(x), layer.linear_map(x.clamp(-1, 1), layer.weight))
    torch.testing.assert_close(layer.eval()(x), layer.linear_map(x.clamp(-1, 1), layer.weight))


def test_a_shifted_sign_relaxes_around_its_threshold() -> None:
    binarizer = ShiftedSignInput(2, estimator=Clip())
    nn.init.constant_(binarizer.shift, 0.5)
    x = torch.tensor([[0.0, -2.0]])
    assert binarizer.relaxed(x).tolist() == [[0.5, -1.0]]


def test_gradients_reach_weight_input_and_bias() -> None:
    layer, x = conv(), (torch.randn(2, 6, 7, 9) / 2).requires_grad_()
    layer.train()(x).square().sum().backward()
    for tensor in (x, layer.weight, layer.bias):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_linear_layer_both_forms() -> None:
    torch.manual_seed(0)
    layer = BinaryLinear.from_float(
        nn.Linear(9, 4),
        weight_binarizer=ScaledSignWeight(estimator=Clip()),
        input_binarizer=SignInput(9, estimator=Clip()),
    )
    x = torch.randn(5, 9)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-5, atol=1e-6)


def test_rprelu_closed_form() -> None:
    layer = RPReLU(1)
    with torch.no_grad():
        layer.shift_in.fill_(1.0)
        layer.shift_out.fill_(2.0)
    assert layer(torch.tensor([[-3.0], [1.0]])).flatten().tolist() == [1.5, 4.0]
    assert layer(torch.full((2, 1, 3, 3), -3.0)).unique().tolist() == [1.5]


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
@pytest.mark.parametrize("kind", [RPReLU, ChannelPReLU])
def test_prelus_train_with_the_gradients_of_plain_autograd(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = kind(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, g = torch.randn(shape), torch.randn(shape)
    results = []
    for training in (True, False):
        layer.train(training).zero_grad()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(g)
        assert leaf.grad is not None
        results.append([y.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
