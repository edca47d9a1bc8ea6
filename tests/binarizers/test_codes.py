"""Every k-bit row at every width: planes, their encoder, their sum, gradients, padding, the packed form."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers import (
    INPUT_BINARIZERS,
    WEIGHT_BINARIZERS,
    build_input_binarizer,
    build_weight_binarizer,
    takes_estimator,
)
from bnnconvert.binarizers.base import Encoder, InputBinarizer, WeightBinarizer
from bnnconvert.binarizers.codes import first_reaching, least_squares_clip
from bnnconvert.errors import UsageError
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.packed import packed_layer
from bnnconvert.values.recipe import Named

WIDTHS = range(1, 9)


def width_of(row: type) -> str | None:
    """What a row calls its number of bits."""
    return next((word for word in ("bits", "bases", "order") if word in inspect.signature(row).parameters), None)


def rows(table: dict[str, type]) -> list[str]:
    """Those whose layers can be packed."""
    return [name for name, row in table.items() if width_of(row) and row.unpackable is None]


def make_input(name: str, bits: int, channels: int = 3) -> InputBinarizer:
    named = Named(name=name, **{str(width_of(INPUT_BINARIZERS[name])): bits})
    return build_input_binarizer(named, channels, where="test")


def make_weight(name: str, bits: int, shape: tuple[int, ...]) -> WeightBinarizer:
    named = Named(name=name, **{str(width_of(WEIGHT_BINARIZERS[name])): bits})
    return build_weight_binarizer(named, shape, where="test")


def bits_of(encoder: Encoder, x: Tensor) -> Tensor:
    """Bits as FORMAT.md defines them. Shapes: x (N, C, ...) -> (P, N, C, ...)."""
    tail = (1,) * (x.dim() - 2)
    thresholds = encoder.thresholds.reshape(len(encoder.start), 1, -1, *tail, encoder.thresholds.shape[2])
    below = ((thresholds <= x[None, ..., None]) & thresholds.isfinite()).sum(-1)
    return (below % 2 == 1) ^ encoder.start.reshape(len(encoder.start), 1, -1, *tail)


def awkward(scale: float = 1.0) -> Tensor:
    """Values with all that is special among them, and each value's neighbours."""
    x = torch.randn(4, 3, 6, 6) * scale
    x[0, 0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-45, -1e-45])
    x[0, 0, 1] = torch.tensor([0.5, 1 / 3, 1.0, 1 / 6, 1.17549435e-38, 2.0]) * scale
    return torch.cat([x, x.nextafter(torch.tensor(torch.inf)), x.nextafter(torch.tensor(-torch.inf))])


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", rows(INPUT_BINARIZERS))
def test_an_input_s_planes_sum_to_its_value_and_its_encoder_gives_their_bits(name: str, bits: int) -> None:
    torch.manual_seed(bits)
    binarizer, x = make_input(name, bits), awkward(3)
    binarizer.calibrate(torch.randn(8, 3, 6, 6) * 3)
    binarizer.eval()
    planes, encoder = binarizer.planes(x), binarizer.encoder()
    total = sum(plane.pm1 * plane.scale for plane in planes)
    torch.testing.assert_close(binarizer(x).detach(), total, rtol=1e-5, atol=1e-5 * float(total.abs().max()))
    assert torch.equal(bits_of(encoder, x), torch.stack([plane.pm1 > 0 for plane in planes]))
    assert torch.equal(encoder.scale, binarizer.scales())
    assert 2 <= len(total.unique()) <= 2**bits
    nothing = torch.full((1, 3, 2, 2), torch.nan)
    assert torch.equal(bits_of(encoder, nothing), torch.stack([plane.pm1 > 0 for plane in binarizer.planes(nothing)]))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", rows(INPUT_BINARIZERS))
def test_an_input_s_gradients_are_finite_and_there(name: str, bits: int) -> None:
    torch.manual_seed(bits)
    binarizer, x = make_input(name, bits), (torch.randn(8, 3, 6, 6) * 2).requires_grad_()
    binarizer.calibrate(x.detach())
    for form, learning in ((binarizer.relaxed, []), (binarizer, list(binarizer.parameters()))):
        x.grad = None
        (form(x) * torch.randn_like(x)).sum().backward()
        for tensor in (x, *learning):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 7)])
@pytest.mark.parametrize("name", rows(WEIGHT_BINARIZERS))
def test_a_weight_s_planes_sum_to_its_value(name: str, shape: tuple[int, ...], bits: int) -> None:
    torch.manual_seed(bits)
    binarizer = make_weight(name, bits, shape)
    w = torch.randn(shape) / 3
    w.flatten()[:2] = torch.tensor([0.0, -0.0])
    binarizer.calibrate(w)
    w.requires_grad_()
    planes, value = binarizer.planes(w), binarizer(w)
    assert len(planes) == binarizer.plane_count
    total = sum(p.pm1 * p.scale.reshape(-1, *(1,) * (w.dim() - 1)) for p in planes)
    torch.testing.assert_close(value, total, rtol=1e-5, atol=1e-5)
    assert all(p.pm1.abs().eq(1).all() for p in planes)
    (value * torch.randn(shape)).sum().backward()
    assert w.grad is not None
    assert w.grad.isfinite().all()
    assert w.grad.abs().sum() > 0


@pytest.mark.parametrize("name", rows(INPUT_BINARIZERS))
def test_a_padded_pixel_is_zero_in_training_in_evaluation_and_packed(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5) + 0.5
    for weights in ("dorefa", "scaled-sign"):
        options = {"estimator": "clip"} if takes_estimator(WEIGHT_BINARIZERS[weights]) else {"bits": 3}
        layer = BinaryConv2d.from_float(
            nn.Conv2d(3, 4, 3, padding=1),
            weight_binarizer=build_weight_binarizer(Named(name=weights, **options), (4, 3, 3, 3), where="test"),
            input_binarizer=make_input(name, 2),
        )
        assert layer.input_binarizer is not None
        layer.input_binarizer.calibrate(x)
        layer.eval()
        with torch.no_grad():
            padded = F.pad(layer.input_binarizer(x), (1, 1, 1, 1), value=0.0)
            expected = F.conv2d(padded, layer.weight_binarizer(layer.weight), layer.bias)
            evaluated = layer(x)
            torch.testing.assert_close(evaluated, expected, rtol=1e-4, atol=1e-5)
            packed = packed_layer(layer, "here")
            assert torch.equal(packed.affine(packed.dot(packed.encode(x))), evaluated)  # type: ignore[operator]
            layer.train()
            layer.input_binarizer.eval()  # running averages stay as they are
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [0, 9, 1.5])
def test_a_width_that_no_row_has_is_refused(bits: float) -> None:
    with pytest.raises(UsageError, match="option 'bits'"):
        build_input_binarizer(Named(name="dorefa", bits=bits), 3, where="layers[0].inputs")


def test_bisection_finds_the_very_first_float() -> None:
    at = [-3.5, -1e-45, 0.0, 1e-40, 0.1, 7.25]

    def code(x: Tensor) -> Tensor:
        return sum((x >= torch.tensor(t)).float() for t in at)  # type: ignore[return-value]

    found = first_reaching(code, len(at) + 1, device=torch.device("cpu"))
    assert torch.equal(found, torch.tensor([*at, torch.inf]))


def test_least_squares_clip_is_the_range_of_values_on_a_grid() -> None:
    values = torch.tensor([0.0, 1, 2, 3] * 50 + [10.0])

    def quantize(x: Tensor, level: Tensor) -> Tensor:
        return (x * 3 / level).clamp(0, 3).round() * level / 3

    assert least_squares_clip(values[:-1], quantize) == 3
    clipped = least_squares_clip(values, quantize)
    assert clipped is not None
    assert 3 <= clipped < 4.5
    assert least_squares_clip(torch.zeros(5), quantize) is None
