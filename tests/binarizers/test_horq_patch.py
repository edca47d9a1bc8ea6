"""HORQ in the paper's form, patch by patch; and that what cannot be packed is refused by its layer's name."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnconvert
from bnnconvert.binarizers.horq_patch import HorqPatchInput
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.errors import RefusalError
from bnnconvert.estimators.clip import Clip
from bnnconvert.gains.base import GainSite
from bnnconvert.gains.k_map import KMap
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.pipeline import unpackable
from bnnconvert.recipe import load_recipe, recipe_names
from tests.networks import Residual, randomise


def sign(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def residual_sum(x: Tensor, order: int) -> Tensor:
    """Of one patch, as printed."""
    total, rest = torch.zeros_like(x), x
    for _ in range(order):
        step = rest.abs().mean() * sign(rest)
        total, rest = total + step, rest - step
    return total


def conv(*, order: int = 2, pad_bit: str = "zero", groups: int = 2, bias: bool = True) -> BinaryConv2d:
    return BinaryConv2d.from_float(
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=groups, bias=bias),
        weight_binarizer=ScaledSignWeight(estimator=Clip()),
        input_binarizer=HorqPatchInput(4, order=order),
        pad_bit=pad_bit,  # type: ignore[arg-type]
    )


def linear(order: int) -> BinaryLinear:
    layer = BinaryLinear.from_float(
        nn.Linear(4, 1, bias=False),
        weight_binarizer=ScaledSignWeight(estimator=Clip()),
        input_binarizer=HorqPatchInput(4, order=order),
    )
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.parametrize(
    ("order", "values"), [(1, [2.5, -2.5, 2.5, -2.5]), (2, [1.5, -1.5, 3.5, -3.5]), (3, [1, -2, 3, -4])]
)
def test_residuals_of_the_notes(order: int, values: list[float]) -> None:
    x, layer = torch.tensor([[1.0, -2.0, 3.0, -4.0]]), linear(order)
    assert layer.effective_windows(x)[0, 0, :, 0].tolist() == values
    assert layer(x).item() == pytest.approx(sum(values))


def test_each_row_has_scales_of_its_own() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(3, 5, 4) * torch.tensor([1.0, 10.0, 0.1]).reshape(3, 1, 1), linear(2)
    made = layer(x)
    assert made.shape == (3, 5, 1)
    for i, j in itertools.product(range(3), range(5)):
        torch.testing.assert_close(made[i, j, 0], residual_sum(x[i, j], 2).sum())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_residual_norm_falls_by_the_scale_in_each_window(order: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    layer = BinaryConv2d.from_float(
        nn.Conv2d(3, 2, 3), weight_binarizer=ScaledSignWeight(estimator=Clip()), input_binarizer=HorqPatchInput(3)
    )
    assert isinstance(layer.input_binarizer, HorqPatchInput)
    windows = layer.windows(x)
    left = [windows]
    for k in range(1, order + 1):
        layer.input_binarizer.order = k
        left.append(windows - layer.effective_windows(x))
    *_, before, after = left
    scale = before.abs().mean(2)
    torch.testing.assert_close(after.square().sum(2), before.square().sum(2) - windows.shape[2] * scale.square())


@pytest.mark.parametrize("pad_bit", ["zero", "one"])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_convolution_is_that_of_each_patch(order: int, pad_bit: str) -> None:
    """By hand, position by position; what is outside is 0, or +1 in each plane, and counts in the divisor."""
    torch.manual_seed(0)
    layer, x = conv(order=order, pad_bit=pad_bit), torch.randn(2, 4, 7, 6)
    made, w = layer(x), layer.weight_binarizer(layer.weight).detach()
    padded, real = (F.pad(t, (2, 2, 1, 1)) for t in (x, torch.ones_like(x)))
    for sample, out, i, j in itertools.product(range(2), range(6), range(made.shape[2]), range(made.shape[3])):
        group = out // 3
        cut = (sample, slice(2 * group, 2 * group + 2), slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 5, 2))
        rest, inside, total = padded[cut], real[cut] > 0, torch.zeros(2, 3, 3)
        for _ in range(order):
            scale = rest.abs().sum() / rest.numel()
            total += torch.where(inside, scale * sign(rest), scale if pad_bit == "one" else 0.0)
            rest = torch.where(inside, rest - scale * sign(rest), 0.0)
        assert layer.bias is not None
        torch.testing.assert_close(
            made[sample, out, i, j], (total * w[out]).sum() + layer.bias[out], rtol=1e-4, atol=1e-5
        )


def test_the_first_order_is_xnor_net_with_its_k_map() -> None:
    torch.manual_seed(0)
    layer, x = conv(order=1, bias=False), torch.randn(2, 4, 7, 6)
    site = GainSite(
        path="", inputs=4, outputs=6, kernel=(3, 3), stride=(2, 2), padding=(1, 2), dilation=(1, 2), groups=2
    )
    twin = BinaryConv2d(
        layer.weight,
        None,
        stride=(2, 2),
        padding=(1, 2),
        dilation=(1, 2),
        groups=2,
        weight_binarizer=layer.weight_binarizer,
        input_binarizer=SignInput(4, estimator=Clip()),
        gain=KMap(site=site),
    )
    torch.testing.assert_close(layer(x), twin(x))


def test_training_and_evaluation_are_the_same() -> None:
    layer, x = conv(), torch.randn(2, 4, 7, 6)
    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("pad_bit", ["zero", "one"])
def test_gradients(pad_bit: str) -> None:
    """The input's is the convolution's where it is within one; the weight's comes from the quantized windows."""
    torch.manual_seed(0)
    layer = conv(pad_bit=pad_bit)
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    with torch.no_grad():
        x[0, 0, 0, :3] = torch.tensor([1.0, -1.0, 1.0000002])
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    quantized = layer.weight_binarizer(layer.weight).detach()
    leaf = x.detach().clone().requires_grad_()
    F.conv2d(leaf, quantized, None, 2, (1, 2), (1, 2), 2).backward(g)
    assert leaf.grad is not None
    torch.testing.assert_close(x.grad, leaf.grad * (x.detach().abs() <= 1), rtol=1e-4, atol=1e-5)
    latent = layer.weight.detach().clone().requires_grad_()
    seen, rows = layer.effective_windows(x.detach()), layer.positions(g)
    to_quantized = torch.einsum("ngop,ngkp->gok", rows, seen).reshape(latent.shape)
    layer.weight_binarizer(latent).backward(to_quantized)
    torch.testing.assert_close(layer.weight.grad, latent.grad, rtol=1e-4, atol=1e-4)


def test_it_is_the_one_recipe_that_does_not_export() -> None:
    assert [name for name in recipe_names() if unpackable(load_recipe(name))] == ["horq-patch"]


def test_its_student_trains_and_export_names_the_layer(tmp_path: Path) -> None:
    student = bnnconvert.convert(randomise(Residual()), "horq-patch", input_shape=(1, 3, 8, 8))
    reason = "each window of its input has scales and residual signs of its own"
    (note,) = student.notes
    assert note.startswith(f"The student trains and cannot be exported: layer1.conv1: {reason}")
    assert student.plan.predicted_bytes is None
    with pytest.raises(RefusalError, match=f"layer1.conv1: it trains and cannot be exported, as {reason}"):
        bnnconvert.export(student, tmp_path / "m.packed.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [ScaledSignWeight, SignInput, KMap])
def test_any_row_may_say_so(row: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row, "unpackable", "of a reason")
    assert unpackable(load_recipe("xnor-k")) is not None
    student = bnnconvert.convert(randomise(Residual()), "xnor-k", input_shape=(1, 3, 8, 8))
    assert "of a reason" in student.notes[-1]
    with pytest.raises(RefusalError, match="cannot be exported, as of a reason"):
        bnnconvert.export(student, tmp_path / "m.packed.safetensors")
