"""The native engine against the portable executor: bits and accumulators equal, floats within rounding."""

import contextlib
import ctypes
import functools
import mmap
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.artifact.schema import Array
from bnnconvert.errors import UsageError
from bnnconvert.layers import operators
from bnnconvert.runtime import native
from bnnconvert.runtime.compile.moves import MOVES as PLACES
from bnnconvert.runtime.compile.operators.table import HANDLERS
from bnnconvert.runtime.segments import parts_of
from bnnconvert.values.program import Argument, Batch, DType
from tests.programs import (
    HOST,
    Case,
    binary_networks,
    instruction_sets,
    int8_networks,
    masked_networks,
    node_program,
    program_of,
    signed_networks,
)

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="installed without the native engine")
ISAS = instruction_sets()
TILES = st.one_of(st.just(""), st.integers(0, 18).map(":{}".format))
"""What stands behind an instruction set: the fastest tile, or one by number."""


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=binary_networks(), threads=st.integers(1, 3), tile=TILES)
def test_binary_networks_are_exact(isa: str, case: Case, threads: int, tile: str) -> None:
    assert np.array_equal(case.run(isa + tile, threads), case.run(None))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=int8_networks(), threads=st.integers(1, 3), tile=TILES)
def test_8_bit_layers_are_exact(isa: str, case: Case, threads: int, tile: str) -> None:
    assert np.array_equal(case.run(isa + tile, threads), case.run(None))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=signed_networks(), threads=st.integers(1, 3), tile=TILES)
def test_layers_of_floats_and_signs_agree(isa: str, case: Case, threads: int, tile: str) -> None:
    _agree(case, isa + tile, threads)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=masked_networks(), threads=st.integers(1, 3), tile=TILES)
def test_layers_under_a_mask_agree(isa: str, case: Case, threads: int, tile: str) -> None:
    _agree(case, isa + tile, threads)


@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_beside_a_window_is_not_read_as_a_number(isa: str) -> None:
    """A row of weights is padded with zeros, and zero times infinity is none."""
    x = torch.ones(1, 3, 1, 2)
    x[..., 1] = torch.nan
    everywhere = (torch.full((1, 1, 1), torch.inf), torch.ones(1, 1, dtype=torch.bool))

    def function(x: Tensor, weight: Tensor, bias: Tensor, thresholds: Tensor, start: Tensor) -> Tensor:
        mask = operators.encode(x, thresholds, start)
        return operators.masked_conv2d(x, mask, weight, bias, [1, 1], [0, 0], [1, 1], 1)

    case = program_of(function, x, torch.ones(3, 3, 1, 1), torch.arange(3.0), *everywhere)
    y = case.run(isa)
    assert y[0, :, 0, 0].tolist() == [3.0, 4.0, 5.0]
    assert np.isnan(y[..., 1]).all()


def _image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


X = _image(2, 20, 9, 7)
ROW = _image(3, 37)
LINE = _image(2, 20, 19)
C = torch.linspace(-1.5, 1.5, 20)
VOLUME = _image(2, 20, 3, 4, 5)
TOKENS, GRID = _image(2, 13, 20), _image(2, 5, 6, 20)


def _block(x: Tensor, into: Tensor, back: Tensor) -> Tensor:
    """A residual block over tokens whose layers are 1x1 convolutions, as conversion makes them."""
    pixels = F.layer_norm(x, (20,)).transpose(1, 2).unsqueeze(-1)
    y = F.conv2d(F.gelu(F.conv2d(pixels, into)), back)
    return x + y.permute(0, 2, 3, 1).squeeze(2).contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads (N, H, T, D) to tokens."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _in_three(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    return F.linear(x, weight).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _of_chunks(x: Tensor, weight: Tensor, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
    return _attend(*(part.unflatten(-1, (2, -1)).transpose(1, 2) for part in cut(F.linear(x, weight))))


FUNCTIONS: dict[str, list[tuple[Callable[..., Tensor], Tensor, list[Tensor]]]] = {
    "aten.conv2d.default": [
        (lambda x, w, b: F.conv2d(x, w, b, padding=1), X, [_image(33, 20, 3, 3), _image(33)]),
        (lambda x, w: F.conv2d(x, w, stride=2, padding=(2, 3), dilation=2), X, [_image(5, 20, 3, 2)]),
        (lambda x, w: F.conv2d(x, w, padding=1, groups=20), X, [_image(20, 1, 3, 3)]),
        (lambda x, w: F.conv2d(x, w, groups=4), X, [_image(12, 5, 1, 1)]),
        (lambda x, w: F.conv2d(x, w, stride=2, padding=3), _image(1, 3, 21, 22), [_image(64, 3, 7, 7)]),
    ],
    "aten.conv2d.padding": [
        # More on one side than on the other; all else becomes numbers when it is traced.
        (lambda x, w: F.conv2d(x, w, padding="same"), X, [_image(5, 20, 4, 3)]),
    ],
    "aten.conv1d.default": [
        (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=3, dilation=2), LINE, [_image(9, 20, 3), _image(9)]),
        (lambda x, w: F.relu(F.conv1d(x, w, groups=20)), LINE, [_image(20, 1, 4)]),
    ],
    "aten.max_pool1d.default": [(lambda x: F.max_pool1d(F.relu(x), 3, 2, 1), LINE, [])],
    "aten.avg_pool1d.default": [
        (lambda x: F.avg_pool1d(x, 2), LINE, []),
        (lambda x: F.avg_pool1d(x, 3, 1, 1), LINE, []),
    ],
    "aten.neg.default": [(lambda x: -F.relu(x), X, [])],
    "aten.linear.default": [
        (lambda x, w, b: F.linear(x, w, b), ROW, [_image(10, 37), _image(10)]),
        (lambda x, w, b: F.linear(x, w, b) * b, TOKENS, [_image(33, 20), _image(33)]),
        (lambda x, w: F.linear(F.relu(x), w) + x, GRID, [_image(20, 20)]),
        (lambda x, w: F.linear(x, w).mean(1) * 2, TOKENS, [_image(5, 20)]),
    ],
    "aten.batch_norm.default": [(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), X, [C, C.exp(), C, C])],
    "aten.layer_norm.default": [
        (lambda x, w, b: F.layer_norm(x * 9 + 7, (20,), w, b), TOKENS, [C, C]),
        (lambda x: F.relu(F.layer_norm(x, (20,), eps=1e-2)), GRID, []),
        (lambda x, w: F.layer_norm(x, (37,), w), ROW, [_image(37)]),
        (
            lambda x, w: F.conv2d(F.layer_norm(x.permute(0, 2, 3, 1), (20,)).permute(0, 3, 1, 2), w),
            X,
            [X[:1, :, :3, :3]],
        ),
    ],
    "aten.unbind.int": [
        (lambda x, w: _attend(*_in_three(x, w, 3).unbind(0)) * 2, TOKENS, [_image(45, 20)]),
    ],
    "aten.select.int": [(lambda x, w: _attend(*(_in_three(x, w, 2)[i] for i in range(3))), TOKENS, [_image(102, 20)])],
    "aten.slice.Tensor": [
        (lambda x, w: _of_chunks(x, w, lambda y: (y[..., :8], y[..., 8:16], y[..., 4:12])), TOKENS, [_image(16, 20)]),
    ],
    "aten.unflatten.int": [(lambda x: F.relu(x).unflatten(-1, (4, 5)).flatten(2) * 2, TOKENS, [])],
    "aten.chunk.default": [(lambda x, w: _of_chunks(x, w, lambda y: y.chunk(3, -1)), TOKENS, [_image(12, 20)])],
    "aten.split.Tensor": [(lambda x, w: _of_chunks(x, w, lambda y: y.split(128, -1)), TOKENS, [_image(384, 20)])],
    "aten.scaled_dot_product_attention.default": [
        (
            lambda x, w, u: _attend(F.linear(x, w)[:, None], x[:, None], F.linear(x, u)[:, None]) + 1,
            TOKENS,
            [_image(20, 20), _image(7, 20)],
        ),
        (
            lambda x, w: F.scaled_dot_product_attention(*[F.linear(x, w)[:, None]] * 3, scale=0.3)[:, 0] * 2,
            TOKENS,
            [_image(20, 20)],
        ),
    ],
    "aten.transpose.int": [(_block, TOKENS, [_image(36, 20, 1, 1), _image(20, 36, 1, 1)])],
    "aten.permute.default": [
        (lambda x: F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) * 2, GRID, []),
        (lambda x: x.permute(0, 2, 3, 1).reshape(-1, 63, 20) + 1, X, []),
    ],
    "aten.unsqueeze.default": [(lambda x: F.max_pool2d(F.relu(x).unsqueeze(2), (1, 3)), LINE, [])],
    "aten.squeeze.dim": [(lambda x: F.adaptive_avg_pool2d(x, (1, 7)).squeeze(2) * 2, X, [])],
    "aten.contiguous.default": [(lambda x: F.relu(x.permute(0, 3, 1, 2).contiguous()), GRID, [])],
    "aten.clone.default": [(lambda x: F.relu(x).clone() + x, X, [])],
    "aten.relu.default": [(F.relu, X, [])],
    "aten.hardtanh.default": [(F.hardtanh, X, []), (lambda x: F.hardtanh(x, -0.5, 2.0), X, [])],
    "aten.clamp.default": [(lambda x: x.clamp(-0.1, 0.3), X, []), (lambda x: x.clamp(max=0.3), X, [])],
    "aten.clamp_min.default": [(lambda x: x.clamp_min(0.2), X, [])],
    "aten.clamp_max.default": [(lambda x: x.clamp_max(0.2), X, [])],
    "aten.prelu.default": [(F.prelu, X, [C]), (F.prelu, X, [C[:1]])],
    "aten.leaky_relu.default": [(lambda x: F.leaky_relu(x, 0.2), X, [])],
    "aten.gelu.default": [(F.gelu, X, []), (lambda x: F.gelu(x, approximate="tanh"), X, [])],
    "aten.exp.default": [(torch.exp, X * 20, [])],
    "aten.sigmoid.default": [(torch.sigmoid, X * 20, [])],
    "aten.tanh.default": [(torch.tanh, X * 3, []), (torch.tanh, X * 0.01, [])],
    "aten.silu.default": [(F.silu, X * 5, [])],
    "aten.hardsigmoid.default": [(F.hardsigmoid, X * 3, [])],
    "aten.hardswish.default": [(F.hardswish, X * 3, [])],
    "aten.sqrt.default": [(lambda x: torch.sqrt(x.abs()), X, [])],
    "aten.reciprocal.default": [(lambda x: torch.reciprocal(x.abs() + 1), X, [])],
    "aten.abs.default": [(torch.abs, X, [])],
    "aten.square.default": [(torch.square, X, [])],
    "aten.add.Tensor": [
        (lambda x: F.relu(x) + x, X, []),
        (lambda x, c: x + c, X, [C.view(-1, 1, 1)]),
        (lambda x, c: torch.add(c, x, alpha=3), X, [C.view(1, -1, 1, 1)]),
        (lambda x, w: F.conv2d(x, w) + F.relu(F.conv2d(x, w)), X, [_image(20, 20, 1, 1)]),
    ],
    "aten.sub.Tensor": [(lambda x: F.relu(x) - x, X, []), (lambda x, c: c - x, X, [C.view(-1, 1, 1)])],
    "aten.mul.Tensor": [
        (lambda x: x * F.relu(x), X, []),
        (lambda x, c: x * c, X, [C.view(-1, 1, 1)]),
        (lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)), X, []),
    ],
    "aten.div.Tensor": [(lambda x, c: x / c, X, [(C + 5).view(-1, 1, 1)])],
    "aten.max_pool2d.default": [
        (lambda x: F.max_pool2d(x, 3, 2, 1), X, []),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), X, []),
    ],
    "aten.avg_pool2d.default": [
        (lambda x: F.avg_pool2d(x, 2), X, []),
        (lambda x: F.avg_pool2d(x, 3, 2, 1), X, []),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), X, []),
        (lambda x: F.avg_pool2d(x, 2, ceil_mode=True), X, []),
    ],
    "aten.adaptive_avg_pool2d.default": [
        (lambda x: F.adaptive_avg_pool2d(x, 1), X, []),
        (lambda x: F.adaptive_avg_pool2d(x, (3, 1)), X, []),
    ],
    "aten.flatten.using_ints": [(lambda x: torch.flatten(x, 1), X, [])],
    "aten.squeeze.dims": [(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3)), X, [])],
    "aten.softmax.int": [
        (lambda x: F.softmax(x, 1), ROW * 10, []),
        (lambda x: F.softmax(x, 1), X, []),
        (lambda x, w: F.softmax(F.linear(x, w), -1), TOKENS, [_image(9, 20)]),
    ],
    "aten.log_softmax.int": [(lambda x: F.log_softmax(x, 1), ROW * 10, [])],
    "aten.cat.default": [
        (lambda x: torch.cat([x, F.relu(x), x * 2], 1), X, []),
        (lambda x, w: torch.cat([x, F.linear(x, w)], -1), TOKENS, [_image(9, 20)]),
        (lambda x: torch.cat([x, F.relu(x), x[:, :, :2]], 2), X, []),
        (lambda x, w: F.conv2d(torch.cat([x, x * 2], 3), w, padding=1), X, [_image(4, 20, 3, 3)]),
        (lambda x, w: F.linear(torch.cat([x[:, 3:], x], 1), w), TOKENS, [_image(9, 20)]),
    ],
    "aten.stack.default": [
        (lambda x, w: torch.stack([F.linear(x, w), F.linear(x, w * 2), x[:, :20]], 1), ROW, [_image(20, 37)]),
        (lambda x: torch.stack([F.relu(x), x], 2), ROW, []),
    ],
    "aten.narrow.default": [(lambda x: F.relu(x).narrow(2, -5, 4), X, [])],
    "aten.split.sizes": [(lambda x: F.relu(torch.ops.aten.split.sizes(x, [3, 17], 1)[1]), X, [])],
    "aten.split_with_sizes.default": [(lambda x: F.relu(torch.ops.aten.split_with_sizes(x, [3, 4], 3)[1]), X, [])],
    "aten.expand.default": [(lambda x: F.relu(x[:, :1]).expand(-1, 20, -1, -1).exp(), X, [])],
    "aten.repeat.default": [(lambda x: F.relu(x).repeat(1, 2, 1, 3).exp(), X, [])],
    "aten.movedim.int": [(lambda x: F.relu(x).movedim(1, 3).exp(), X, [])],
    "aten.movedim.intlist": [(lambda x: F.relu(x).movedim((2, 3), (1, 2)).exp(), X, [])],
    "aten.flip.default": [(lambda x: F.relu(x).flip(1, -1).exp(), X, [])],
    "aten.roll.default": [(lambda x: F.relu(x).roll((2, -3), (2, 3)).exp(), X, [])],
    "aten.channel_shuffle.default": [(lambda x: F.channel_shuffle(F.relu(x), 5).exp(), X, [])],
    "aten.pixel_shuffle.default": [(lambda x: F.pixel_shuffle(F.relu(x), 2).exp(), X, [])],
    "aten.pixel_unshuffle.default": [(lambda x: F.pixel_unshuffle(F.relu(x), 3).exp(), X[..., :6].contiguous(), [])],
    "aten.upsample_nearest1d.vec": [(lambda x: F.interpolate(F.relu(x), scale_factor=3).exp(), LINE, [])],
    "aten.upsample_nearest2d.vec": [
        (lambda x, w: F.conv2d(F.interpolate(F.relu(x), size=(18, 21)), w, padding=1), X, [_image(4, 20, 3, 3)])
    ],
    "aten.pad.default": [
        (lambda x, w: F.conv2d(F.pad(F.relu(x), (1, 2, 0, 3)), w, padding=1), X, [_image(4, 20, 3, 3)]),
        (lambda x: F.pad(F.relu(x), (0, 0, 2, 1, 1, 0)).exp(), X, []),
        (lambda x: F.pad(F.relu(x), (2, 1, 1, 1), mode="reflect").exp(), X, []),
        (lambda x: F.pad(F.relu(x), (2, 1), mode="replicate").exp(), LINE, []),
        (lambda x: F.pad(F.relu(x), (2, 1), mode="circular").exp(), LINE, []),
    ],
    "aten.constant_pad_nd.default": [
        (lambda x: torch.ops.aten.constant_pad_nd(F.relu(x), [1, 2, 0, 1], 0.0) + 1, X, [])
    ],
    "aten.reshape_as.default": [(lambda x: F.relu(x).flatten(2).exp().reshape_as(x), X, [])],
    "aten.view_as.default": [(lambda x: F.relu(x).flatten(2).exp().view_as(x), X, [])],
    "aten.expand_as.default": [(lambda x: F.relu(x)[:, :1].expand_as(x).exp(), X, [])],
    "aten.addcmul.default": [(lambda x, c: torch.addcmul(c, c.square(), F.relu(x), value=0.5), TOKENS, [C])],
    "aten.type_as.default": [(lambda x: F.relu(x).type_as(x) + 1, X, [])],
    "aten.rsub.Scalar": [(lambda x: 1 - F.relu(x), X, [])],
    "aten.adaptive_avg_pool1d.default": [(lambda x: F.adaptive_avg_pool1d(F.relu(x), 1), LINE, [])],
    "aten.adaptive_avg_pool3d.default": [(lambda x: F.adaptive_avg_pool3d(F.relu(x), 1), VOLUME, [])],
    "aten.concat.default": [(lambda x: torch.concat([F.relu(x), x], 1), X[:, :3].contiguous(), [])],
}


NODES: dict[str, list[tuple[Tensor, dict[str, Argument], tuple[int, ...]]]] = {
    "aten.relu6.default": [(X * 5, {}, X.shape[1:])],
    "aten.to.dtype": [(ROW, {"dtype": DType(dtype="float32")}, (37,))],
    "aten.add.Scalar": [(ROW, {"other": 2, "alpha": 3}, (37,))],
    "aten.sub.Scalar": [(ROW, {"other": 0.5}, (37,))],
    "aten.mul.Scalar": [(ROW, {"other": -2}, (37,))],
    "aten.div.Scalar": [(ROW, {"other": 3}, (37,))],
    "aten.mean.dim": [(X, {"dim": (2, 3)}, (20,)), (X, {"dim": (-1, -2), "keepdim": True}, (20, 1, 1))],
    "aten.reshape.default": [(X, {"shape": (Batch(batch=1), 1260)}, (1260,))],
    "aten.view.default": [(X, {"size": (Batch(batch=1), 10, 2, 63)}, (10, 2, 63))],
}
"""Operators that the tracer turns into others: arguments but for the first, and the shape that comes out."""


def _shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _by_windows(x: Tensor, weight: Tensor) -> Tensor:
    """Attention in windows of a grid, as parts of the samples and on an axis of their own."""
    windows = F.relu(x.unflatten(1, (1, 5)).unflatten(3, (2, 3)).transpose(2, 3))
    parts = F.linear(F.layer_norm(windows.flatten(0, 2).flatten(1, 2), (20,)), weight).unflatten(-1, (3, 5, 4))
    made = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
    same = parts.unflatten(0, (-1, 2)).permute(3, 0, 1, 4, 2, 5)
    return (made + F.scaled_dot_product_attention(*same).flatten(0, 1)).transpose(1, 2).flatten(2).unflatten(0, (-1, 2))


def _by_frames(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of volumes as one of images whose channels are those of three frames."""
    padded = F.pad(F.relu(x), (0, 0, 0, 0, 1, 1))
    frames = torch.stack([padded[:, :, first : first + 3] for first in range(3)], 2)
    made = F.conv2d(frames.permute(0, 3, 1, 2, 4, 5).flatten(0, 1).flatten(1, 2), weight, padding=1)
    return F.max_pool2d(made, 3, 1, 1).unflatten(0, (-1, 3)).transpose(1, 2)


def _cell(x: Tensor, weight: Tensor) -> Tensor:
    """A recurrent layer with gates, its steps one after another."""
    h, made = x[:, 0, :5], []
    for step in F.linear(x, weight).unbind(1):
        i, f, g = (step + F.linear(h, weight[:, :5])).chunk(3, 1)
        h = f.sigmoid() * h + i.sigmoid() * g.tanh()
        made.append(h)
    return torch.stack(made, 1)


MOVES: list[tuple[Callable[..., Tensor], Tensor, list[Tensor]]] = [
    (lambda x, w: F.conv2d(_shuffled(F.conv2d(x, w, padding=1), 4), w, padding=1), X, [_image(20, 20, 3, 3)]),
    (lambda x: F.relu(x)[:, 3] + x[:, -1], X, []),
    (lambda x: F.relu(x)[:, :, 1::2, 1:].exp(), X, []),
    (lambda x, w: F.max_pool2d(F.conv2d(x, w, padding=1).transpose(2, 3), 3, 1, 1), X, [_image(33, 20, 3, 3)]),
    (lambda x, w: F.relu(F.linear(x, w).transpose(1, 2)).flatten(1), TOKENS, [_image(9, 20)]),
    (lambda x, w: F.conv1d(F.linear(x, w), w[:, :13, None], padding=1), TOKENS, [_image(9, 20)]),
    (lambda x, w: F.layer_norm(F.conv2d(x, w, padding=1), (7,)) + x[:, :4], X, [_image(4, 20, 3, 3)]),
    (lambda x, c: F.batch_norm(F.relu(x[:, 1:].movedim(1, 2)), c, c.square() + 1), TOKENS, [C]),
    (lambda x, c: F.linear(x, c[:12].view(3, 4).flip(0).repeat(1, 5)), TOKENS, [C]),
    (lambda x: F.relu(x).transpose(1, 2)[:, :, ::2].exp() + 1, VOLUME, []),
    (lambda x: F.relu(x) / (x.abs() + 1), X, []),
    (lambda x: torch.cat([F.relu(x)[:, :0], x], 1).exp(), X, []),
    (lambda x, c: F.relu(x + c) * c[:, :1] - c[:, :, :1, :1] + c[0, :, :, :1] / 2, X, [X[:1].clone()]),
    (lambda x, c: torch.cat([c.expand(x.shape[0], -1, -1), F.relu(x)], 1) + 1, TOKENS, [TOKENS[:1, :2].clone()]),
    (lambda x, c: (GRID[:1] - F.relu(x)).flatten(0, 1) * c[:6].view(1, 6, 1), GRID, [C]),
    (lambda x: F.relu(x).mean(1), TOKENS, []),
    (lambda x, w: _by_windows(x, w), GRID, [_image(60, 20)]),
    (lambda x, w: _by_frames(x, w), VOLUME, [_image(7, 60, 3, 3)]),
    (lambda x, w: F.scaled_dot_product_attention(*F.linear(x, w).chunk(3, -1)), TOKENS, [_image(60, 20)]),
    (_cell, TOKENS, [_image(15, 20)]),
]
"""Functions of which some step reads numbers in another order than they lie in."""


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_numbers_are_moved_inside_the_engine(number: int) -> None:
    function, x, tensors = MOVES[number]
    case = program_of(function, x, *tensors)
    parts, reasons = parts_of(case.program, case.tensors)
    assert len(parts) == 1, reasons
    _agree(case, ISAS[0], threads=1 + number % 3)


def test_every_float_operator_has_a_case() -> None:
    assert {*FUNCTIONS, *NODES} == {op for op in HANDLERS if op.startswith("aten.")}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("op", "number", "isa"),
    [
        (op, i, isa)
        for op, cases in FUNCTIONS.items()
        for i in range(len(cases))
        for isa in (ISAS[:1] if op in PLACES else ISAS)  # moves are the same for every instruction set
    ],
    ids=str,
)
def test_float_operators_agree_with_torch(op: str, number: int, isa: str) -> None:
    function, x, tensors = FUNCTIONS[op][number]
    case = program_of(function, x, *tensors)
    assert op in {node.op for node in case.program.nodes}
    _agree(case, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "number"), [(op, i) for op, cases in NODES.items() for i in range(len(cases))], ids=str)
def test_other_float_operators_agree_with_torch(op: str, number: int, isa: str) -> None:
    x, arguments, shape = NODES[op][number]
    _agree(node_program(op, x, arguments, shape), isa)


@pytest.mark.skipif(bool(HOST), reason="memory of another process")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (3, 3, 7, 17), (2, 17, 3, 3), (2, 64, 1, 1)], ids=str)
def test_no_byte_beyond_input_and_output_is_touched(isa: str, shape: tuple[int, ...]) -> None:
    x = _image(*shape)
    case = program_of(lambda x, w: F.conv2d(F.relu(x), w), x, _image(9, shape[1], 1, 1))
    (part,), _ = parts_of(case.program, case.tensors)
    assert part.plan is not None
    expected = case.run(None)
    engine = native.Engine(part.plan, [shape[1:]], [expected.shape[1:]], threads=1, isa=isa)
    given, made = guarded(x.numel()), guarded(expected.size)
    given[:] = x.numpy().ravel()
    arrays = [(ctypes.c_void_p * 1)(a.ctypes.data) for a in (given, made)]
    assert engine._library.bnn_run(engine._handle, shape[0], *arrays) == 0
    np.testing.assert_allclose(made.reshape(expected.shape), expected, rtol=3e-6, atol=1e-5)


def guarded(count: int) -> Array:
    """Float32 numbers that end where memory ends that nobody may touch."""
    size = -(-4 * count // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), mmap.PAGESIZE, 0) == 0
    return np.frombuffer(memory, np.float32, count, size - 4 * count)


def _agree(case: Case, isa: str, threads: int = 2) -> None:
    """Sums of up to some thousand terms in another order: their rounding is relative to the terms, not to the sum."""
    expected = case.run(None)
    np.testing.assert_allclose(case.run(isa, threads), expected, rtol=1e-5, atol=4e-6 * max(1, np.abs(expected).max()))


@functools.cache
def _token_network(tokens: int, heads: int, size: int, width: int, products: str = "float") -> Case:
    """Attention behind a layer norm; of each head its queries, keys and values lie side by side, the values twice."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if products == "float":
            return _attend(q, k, v)
        return operators.binary_attention(q, k, v, None, 0.7, products == "both").transpose(1, 2).flatten(2)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        parts = F.linear(F.layer_norm(x, (width,)), weight).unflatten(-1, (heads, 4, size))
        q, k, v, w = parts.permute(3, 0, 2, 1, 4).unbind(0)
        return attend(q, k, v) + attend(q, k, w)

    return program_of(function, _image(3, tokens, width), _image(4 * heads * size, width) * width**-0.5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("products", ["float", "scores", "both"])
@pytest.mark.parametrize(
    "sizes", [(5, 2, 3, 7), (2, 1, 1, 16), (16, 4, 16, 33), (17, 3, 70, 5), (100, 2, 20, 64)], ids=str
)
def test_attention_agrees_at_any_size(isa: str, products: str, sizes: tuple[int, int, int, int]) -> None:
    _agree(_token_network(*sizes, products), isa, threads=sizes[1])


@pytest.mark.parametrize("isa", ISAS)
def test_attention_by_signs_counts_every_key_where_all_scores_are_0(isa: str) -> None:
    def function(x: Tensor, zeros: Tensor, ones: Tensor) -> Tensor:
        q, v = F.linear(x, zeros)[:, None], F.linear(x, ones)[:, None]
        y: Tensor = operators.binary_attention(q, q, v, None, 1.0, True)
        return y[:, 0] * 1

    case = program_of(function, torch.tensor([[[1.0], [0.0], [-2.0]]]), torch.zeros(3, 1), torch.ones(1, 1))
    np.testing.assert_allclose(case.run(isa), np.full((1, 3, 1), 1 / 3), rtol=1e-6)


@st.composite
def pooled_networks(draw: st.DrawFn) -> Case:
    """A convolution that only a pool or a depthwise convolution reads."""
    channels, samples = draw(st.sampled_from([3, 16, 32, 70, 144])), draw(st.integers(1, 3))
    size = draw(st.tuples(st.integers(5, 23), st.integers(3, 9)))
    kernel = draw(st.integers(1, 3))
    window = {"stride": draw(st.integers(1, 4)), "padding": draw(st.integers(0, kernel // 2))}
    weight, depthwise = _image(channels, 5, 3, 3), _image(channels, 1, kernel, kernel)
    pool = draw(
        st.sampled_from(
            [
                lambda y: F.max_pool2d(y, kernel, ceil_mode=True, **window),
                lambda y: F.avg_pool2d(y, kernel, count_include_pad=False, **window),
                lambda y: F.conv2d(y, depthwise, groups=channels, **window),
                lambda y: F.max_pool2d(y, (kernel, 1), **window | {"padding": 0}, dilation=2),
            ]
        )
    )
    x = _image(samples, 5, *size)
    return program_of(lambda x, weight: pool(F.relu(F.conv2d(x, weight, padding=1))) * 2, x, weight)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=pooled_networks(), threads=st.integers(1, 3), tile=TILES)
def test_bands_of_rows_agree(isa: str, case: Case, threads: int, tile: str) -> None:
    """By number, the two layers work a row at a time."""
    _agree(case, isa + tile, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_image_between_two_layers_is_made_in_bands(threads: int) -> None:
    x, weight = _image(2, 3, 120, 90), _image(32, 3, 3, 3)
    case = program_of(lambda x, w: F.max_pool2d(F.relu(F.conv2d(x, w, padding=1)), 3, 2, 1), x, weight)
    np.testing.assert_allclose(case.run(ISAS[0], threads), case.run(None), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(bool(HOST), reason="minutes under emulation")
@pytest.mark.parametrize("signs", [False, True])
def test_a_layer_whose_tile_is_chosen_by_some_of_its_filters_has_all_of_them(signs: bool) -> None:
    filters, length = 4250, 2048  # 35 MB as floats
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, filters, length // 8), np.uint8))

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return operators.signed_linear(x, weight, length) if signs else F.linear(x, weight)

    case = program_of(function, _image(3, length), rows if signs else _image(filters, length))
    expected = case.run(None)
    np.testing.assert_allclose(case.run(ISAS[0], 1), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(bool(HOST), reason="runs in this process")
def test_each_instruction_set_has_a_bound() -> None:
    assert all(native.peak(isa) > 0 for isa in ISAS)
    assert native.peak("z80") == 0
    assert 1e8 < native.clock() < 1e10


@pytest.mark.skipif(bool(HOST), reason="runs in this process")
def test_one_engine_runs_one_call_at_a_time_and_two_engines_two() -> None:
    case = program_of(lambda x, w: F.conv2d(F.relu(x), w, padding=1), X, _image(20, 20, 3, 3))
    (part,), _ = parts_of(case.program, case.tensors)
    assert part.plan is not None
    shapes = [(1, *X.shape[1:])], [(1, *X.shape[1:])]
    first, second = (native.Engine(part.plan, *shapes, threads=2, isa=ISAS[0]) for _ in range(2))
    many = np.random.default_rng(0).standard_normal((20000, *X.shape[1:]), np.float32)
    (expected,) = second.run([many[:3]], 3)
    found: list[Array] = []

    def run_many() -> None:
        while not found:
            with contextlib.suppress(UsageError):
                found.extend(first.run([many], len(many)))

    thread = threading.Thread(target=run_many)
    thread.start()
    was_busy = False
    while thread.is_alive():
        with contextlib.suppress(UsageError):
            first.run([many[:1]], 1)
            continue
        was_busy = True
        assert np.array_equal(second.run([many[:3]], 3)[0], expected)
    assert was_busy
    assert np.array_equal(found[0][:3], expected)
