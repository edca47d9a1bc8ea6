"""Each binarizer against the closed-form case that the literature notes give."""

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from bnnconvert.binarizers import (
    INPUT_BINARIZERS,
    WEIGHT_BINARIZERS,
    build_input_binarizer,
    build_weight_binarizer,
    takes_estimator,
)
from bnnconvert.binarizers.base import InputBinarizer, Plane, WeightBinarizer
from bnnconvert.binarizers.libra import LibraWeight
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.ede import Ede
from bnnconvert.estimators.identity import Identity
from bnnconvert.values.recipe import Named


def weight_gradient(binarizer: WeightBinarizer, weight: list[float], upstream: list[float]) -> tuple[Tensor, Tensor]:
    w = torch.tensor([weight], requires_grad=True)
    out = binarizer(w)
    (out * torch.tensor([upstream])).sum().backward()
    assert w.grad is not None
    return out.detach()[0], w.grad[0]


@pytest.mark.parametrize(
    ("scale_grad", "expected"),
    [("paper", [1, 0.5, 3, 4]), ("exact", [2.25, -1.5, 3.75, 4.5]), ("detached", [0.75, 0, 2.25, 3])],
)
def test_bwn_scale_and_its_three_gradients(
    scale_grad: Literal["paper", "exact", "detached"], expected: list[float]
) -> None:
    binarizer = ScaledSignWeight(estimator=Clip(), scale_grad=scale_grad)
    out, grad = weight_gradient(binarizer, [0.5, -1.5, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0])
    assert out.tolist() == [0.75, -0.75, 0.75, 0.75]
    assert grad.tolist() == pytest.approx(expected)


def test_xnor_layer_equals_the_real_convolution_where_the_paper_says_so() -> None:
    # Section 5 of the notes: W of two magnitudes equal, so alpha B is W itself and the binary dot product is 8.
    x = torch.tensor([[[[1.0, -2], [3, -4]], [[-1, 2], [-3, 4]]]])
    w = torch.tensor([[[[0.5, -0.5], [0.5, -0.5]], [[-0.5, 0.5], [-0.5, 0.5]]]])
    (plane,) = ScaledSignWeight(estimator=Clip()).planes(w)
    assert plane.scale is not None
    assert plane.scale.tolist() == [0.5]
    acc = torch.nn.functional.conv2d(torch.sign(x), plane.pm1)
    assert acc.item() == 8


def test_bnn_weights_pass_the_gradient_and_clip_the_latent_weight() -> None:
    binarizer = SignWeight(estimator=Identity())
    out, grad = weight_gradient(binarizer, [-1.5, -0.2, 0.0, 0.4], [1.0, 2.0, 3.0, 4.0])
    assert out.tolist() == [-1, -1, 1, 1]
    assert grad.tolist() == [1, 2, 3, 4]
    assert binarizer.clip == 1.0


def test_bireal_weight_gradient_is_magnitude_aware() -> None:
    binarizer = ScaledSignWeight(estimator=Clip(), scale_grad="detached")
    _, grad = weight_gradient(binarizer, [0.5, -1.5, 0.0, 1.0], [1.0] * 4)
    assert grad.tolist() == [0.75, 0, 0.75, 0.75]


def test_libra_standardises_and_scales_by_a_power_of_two() -> None:
    binarizer = LibraWeight(estimator=Ede())
    (plane,) = binarizer.planes(torch.tensor([[1.0, 2, 3, 4]]))
    assert plane.pm1.tolist() == [[-1, -1, 1, 1]]
    assert plane.scale is not None
    assert plane.scale.tolist() == [1.0]
    out = binarizer(torch.tensor([[0.0] * 7 + [8.0]]))
    assert out.tolist() == [[-0.5] * 7 + [0.5]]


def test_libra_gradient_is_that_of_the_standardised_weight() -> None:
    w = torch.randn(3, 2, 3, 3, requires_grad=True)
    g = torch.randn_like(w)
    ede = Ede()
    (LibraWeight(estimator=ede)(w) * g).sum().backward()
    v = w.detach().clone().requires_grad_()
    rows = v.flatten(1)
    standard = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    scale = 2 ** standard.detach().abs().mean(1).log2().round()
    surrogate = (ede.gradient(standard.detach(), g.flatten(1) * scale[:, None]) * standard).sum()
    surrogate.backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, v.grad)


@pytest.mark.parametrize("shape", [(4, 1), (3, 1, 1, 1)])
def test_libra_survives_filters_without_deviation(shape: tuple[int, ...]) -> None:
    w = torch.full(shape, 0.3, requires_grad=True)
    out = LibraWeight(estimator=Ede())(w)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert w.grad is not None
    assert torch.isfinite(w.grad).all()


def test_reactnet_shift_moves_the_threshold() -> None:
    binarizer = ShiftedSignInput(1, estimator=ApproxSign())
    with torch.no_grad():
        binarizer.shift.fill_(0.3)
    x = torch.tensor([[-0.2], [-0.4], [0.7], [-1.3]], requires_grad=True)
    (plane,) = binarizer.planes(x)
    assert plane.pm1.flatten().tolist() == [1, -1, 1, -1]
    plane.pm1.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([1.8, 1.8, 0.0, 0.0], abs=1e-6)
    assert binarizer.shift.grad is not None
    assert float(binarizer.shift.grad) == pytest.approx(3.6)


def test_reactnet_shift_starts_at_minus_the_channel_means() -> None:
    binarizer = ShiftedSignInput(3, estimator=ApproxSign())
    x = torch.randn(5, 3, 4, 4) + torch.tensor([1.0, -2.0, 0.0]).reshape(3, 1, 1)
    binarizer.calibrate(x)
    torch.testing.assert_close(binarizer.shift.detach(), -x.mean((0, 2, 3)))


def named(table: Mapping[str, type[nn.Module]], name: str) -> Named:
    """A row with an estimator, if it takes one."""
    return Named(name=name, **({"estimator": "clip"} if takes_estimator(table[name]) else {}))


def make_input(name: str, channels: int) -> InputBinarizer:
    return build_input_binarizer(named(INPUT_BINARIZERS, name), channels, where="test")


@pytest.mark.parametrize("name", INPUT_BINARIZERS)
def test_encoder_gives_the_bits_of_the_planes(name: str) -> None:
    binarizer = make_input(name, 3)
    for parameter in binarizer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 3, 5, 5)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, float("nan")])
    encoder = binarizer.encoder()
    for index, plane in enumerate(binarizer.planes(x)):
        below = (encoder.thresholds[index].reshape(1, -1, 1, 1, encoder.thresholds.shape[2]) <= x[..., None]).sum(-1)
        bits = (below % 2 == 1) ^ encoder.start[index].reshape(1, -1, 1, 1)
        assert torch.equal(bits, plane.pm1 > 0)
        assert set(plane.pm1.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("name", WEIGHT_BINARIZERS)
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 7)])
def test_weight_planes_are_plus_minus_one_and_carry_gradient(name: str, shape: tuple[int, ...]) -> None:
    binarizer = build_weight_binarizer(named(WEIGHT_BINARIZERS, name), shape, where="test")
    w = binarizer.latent(torch.randn(shape) / 3).clone().requires_grad_()
    binarizer.calibrate(w.detach())
    assert len(binarizer.planes(w)) == binarizer.plane_count
    for plane in binarizer.planes(w):
        assert set(plane.pm1.unique().tolist()) <= {-1.0, 1.0}
        assert plane.scale is None or plane.scale.shape in {(), (shape[0],)}
    (binarizer(w) * torch.randn(shape)).sum().backward()
    assert w.grad is not None
    assert w.grad.abs().sum() > 0


@pytest.mark.parametrize("table", [WEIGHT_BINARIZERS, INPUT_BINARIZERS])
def test_every_row_names_its_source(table: dict[str, type]) -> None:
    for row in table.values():
        assert len(row.source) > 10


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"name": "scaled-sing", "estimator": "clip"}, "did you mean 'scaled-sign'"),
        ({"name": "scaled-sign", "estimator": "clop"}, "did you mean 'clip'"),
        ({"name": "scaled-sign", "estimator": "clip", "scale": 1}, "no option 'scale'"),
        ({"name": "scaled-sign"}, "estimator"),
        ({"name": "scaled-sign", "estimator": 3}, "a name or a table"),
        ({"name": "scaled-sign", "estimator": {"name": "clip", "closd": True}}, "did you mean 'closed'"),
        ({"name": "scaled-sign", "estimator": "clip", "clip": 0}, "option 'clip' is 0: input should be greater than 0"),
        ({"name": "libra", "estimator": {"name": "ede", "t_min": 0}}, "option 't_min' is 0: "),
    ],
)
def test_wrong_names_and_options_are_refused_by_key(named: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=r"layers\[0\]\.weights") as error:
        build_weight_binarizer(Named(**named), (8, 4, 3, 3), where="layers[0].weights")
    assert words in str(error.value)


def test_an_estimator_is_an_unknown_option_of_a_method_that_brings_its_own() -> None:
    class Own(WeightBinarizer):
        source = "tests"

        def planes(self, weight: Tensor) -> list[Plane]:
            return [Plane(weight.sign())]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WEIGHT_BINARIZERS, "own", Own)
        with pytest.raises(UsageError, match="has no option 'estimator'"):
            build_weight_binarizer(Named(name="own", estimator="clip"), (2, 3), where="layers[0].weights")
