"""Operators of the packed program, with reference implementations in torch on any device.

    encode         bit[p, c] = start[p, c] xor (number of t with thresholds[p, c, t] <= x is odd)
    binary_*       acc[p, m] = map(A_p, B_m)      A, B the ±1 tensors behind bits and packed rows: an exact int32
    signed_*       acc[m] = map(x, B_m)           float input
    signed_embedding   y = B_0[i] s_0[i] + B_1[i] s_1[i] + ..., rounded to float32 after each step, in this order
    quantize       q = clamp(round(x factor), -127, 127), ties to even
    int8_*         acc = map(q, w)                an exact int32
    masked_*       y = map(x, w) + bias where the mask is set, 0 elsewhere
    binary_attention   attention whose scores are products of signs, see `attend`
    affine         y = acc_0 s_0 + acc_1 s_1 + ... + bias, rounded to float32 after each step, in this order

Planes stand on the channel axis, p slowest, then m. Weight rows are packed as `bits.py` says, in (kh, kw, c)
order. A threshold of +inf, or 2^31 - 1 for int32, is padding and never counts; NaN is below every threshold.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.estimators.base import sign_pm1
from bnnconvert.layers.registered import operator, without_values

EXACT_K = 2**24
"""A sum of fewer than this many ±1 is exact in float32."""


def padding_threshold(dtype: torch.dtype) -> float | int:
    """Threshold that stands for `none`."""
    return math.inf if dtype.is_floating_point else torch.iinfo(dtype).max


@operator
def encode(x: Tensor, thresholds: Tensor, start: Tensor) -> Tensor:
    """Bits of an activation, one group of channels per plane.

    Shapes: x (N, C, ...), thresholds (P, C or 1, T), start (P, C or 1), bits (N, P * C, ...).
    """
    per_channel = (1, *start.shape, *(1,) * (x.dim() - 2))
    none = padding_threshold(thresholds.dtype)
    x = x.unsqueeze(1)
    bits = start.reshape(per_channel).expand(x.shape[0], start.shape[0], *x.shape[2:])
    for threshold in thresholds.unbind(-1):
        threshold = threshold.reshape(per_channel)
        bits = bits ^ ((threshold <= x) & (threshold != none))
    return bits.flatten(1, 2).clone()


@without_values(encode)
def _(x: Tensor, thresholds: Tensor, start: Tensor) -> Tensor:
    shape = (x.shape[0], start.shape[0] * x.shape[1], *x.shape[2:])
    return x.new_empty(shape, dtype=torch.bool)


def unpack(weight: Tensor, k: int) -> Tensor:
    """Packed rows as ±1 float32.

    Shapes: (M, O, row_bytes) -> (M, O, K).
    """
    shifts = torch.arange(8, device=weight.device, dtype=torch.uint8)
    bits = (weight.unsqueeze(-1) >> shifts).bitwise_and_(1)
    return bits.flatten(-2)[..., :k].float().mul_(2).sub_(1)  # in place: these are the largest tensors of a program


def unpack_filters(weight: Tensor, in_channels: int, kernel: Sequence[int], groups: int) -> Tensor:
    """Packed rows as ±1 filters.

    Shapes: (M, O, row_bytes) -> (M, O, C / groups, kh, kw).
    """
    per_group = in_channels // groups
    filters = unpack(weight, per_group * math.prod(kernel))
    return filters.reshape(*weight.shape[:2], *kernel, per_group).permute(0, 1, 4, 2, 3).contiguous()


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Positions of a kernel along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolve(
    x: Tensor, filters: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int, pad_bit: str
) -> Tensor:
    """Convolve one plane with M planes of filters; the result has the planes on its channel axis."""
    if pad_bit == "one" and any(padding):
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=1.0)
        padding = [0, 0]
    return torch.cat([F.conv2d(x, f, None, stride, padding, dilation, groups) for f in filters], 1)


def _conv_shape(
    x: Tensor,
    weight: Tensor,
    planes: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[int, ...]:
    channels = planes * weight.shape[0] * weight.shape[1]
    sizes = (out_size(s, *a) for s, *a in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True))
    return (x.shape[0], channels, *sizes)


@operator
def binary_conv2d(
    bits: Tensor,
    weight: Tensor,
    in_channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pad_bit: str,
) -> Tensor:
    """Exact convolution of every input plane with every weight plane.

    Shapes: bits (N, P * C, H, W), weight (M, O, row_bytes), acc (N, P * M * O, H', W').
    """
    exact = torch.float32 if in_channels // groups * math.prod(kernel) < EXACT_K else torch.float64
    filters = unpack_filters(weight, in_channels, kernel, groups).to(exact)
    planes = torch.split(bits.to(exact) * 2 - 1, in_channels, 1)
    parts = [convolve(p, filters, stride, padding, dilation, groups, pad_bit) for p in planes]
    return torch.cat(parts, 1).to(torch.int32)


@without_values(binary_conv2d)
def _(
    bits: Tensor,
    weight: Tensor,
    in_channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pad_bit: str,
) -> Tensor:
    planes = bits.shape[1] // in_channels
    shape = _conv_shape(bits, weight, planes, kernel, stride, padding, dilation)
    return bits.new_empty(shape, dtype=torch.int32)


@operator
def binary_linear(bits: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Exact product of every input plane with every weight plane, over the last axis.

    Shapes: bits (N, ..., P * I), weight (M, O, row_bytes), acc (N, ..., P * M * O).
    """
    exact = torch.float32 if in_features < EXACT_K else torch.float64
    rows = unpack(weight, in_features).to(exact).flatten(0, 1)
    planes = torch.split(bits.to(exact) * 2 - 1, in_features, -1)
    return torch.cat([F.linear(p, rows) for p in planes], -1).to(torch.int32)


@without_values(binary_linear)
def _(bits: Tensor, weight: Tensor, in_features: int) -> Tensor:
    planes = bits.shape[-1] // in_features
    return bits.new_empty((*bits.shape[:-1], planes * weight.shape[0] * weight.shape[1]), dtype=torch.int32)


@operator
def signed_conv2d(
    x: Tensor,
    weight: Tensor,
    in_channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pad_bit: str,
) -> Tensor:
    """Convolution of a float input with every weight plane.

    Shapes: x (N, C, H, W), weight (M, O, row_bytes), acc (N, M * O, H', W').
    """
    filters = unpack_filters(weight, in_channels, kernel, groups).to(x.dtype)
    return convolve(x, filters, stride, padding, dilation, groups, pad_bit)


@without_values(signed_conv2d)
def _(
    x: Tensor,
    weight: Tensor,
    in_channels: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pad_bit: str,
) -> Tensor:
    return x.new_empty(_conv_shape(x, weight, 1, kernel, stride, padding, dilation))


@operator
def signed_linear(x: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Product of a float input with every weight plane, over the last axis.

    Shapes: x (N, ..., I), weight (M, O, row_bytes), acc (N, ..., M * O).
    """
    return torch.cat([F.linear(x, rows) for rows in unpack(weight, in_features).to(x.dtype)], -1)


@without_values(signed_linear)
def _(x: Tensor, weight: Tensor, in_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[1]))


@operator
def signed_embedding(indices: Tensor, weight: Tensor, scale: Tensor, features: int) -> Tensor:
    """Rows of a table by their numbers.

    Shapes: indices (...) int64 or int32, weight (M, V, row_bytes), scale (M, V), y (..., features).
    """
    first, *more = (unpack(w[indices], features) * s[indices].unsqueeze(-1) for w, s in zip(weight, scale, strict=True))
    y: Tensor = sum(more, start=first)
    return y


@without_values(signed_embedding)
def _(indices: Tensor, weight: Tensor, scale: Tensor, features: int) -> Tensor:
    return scale.new_empty((*indices.shape, features))


@operator
def quantize(x: Tensor, factor: float) -> Tensor:
    """Bytes of an activation; NaN becomes 127. Shapes: those of x."""
    scaled = (x * torch.tensor(factor, dtype=torch.float32, device=x.device)).nan_to_num(nan=127.0)
    return scaled.clamp(-127, 127).round().to(torch.int8)


@without_values(quantize)
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format)


def _exact_bytes(k: int) -> torch.dtype:
    return torch.float32 if k * 127 * 127 < EXACT_K else torch.float64


@operator
def int8_conv2d(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """Exact convolution of bytes.

    Shapes: x (N, C, H, W) int8, weight (O, C / groups, kh, kw) int8, acc (N, O, H', W').
    """
    exact = _exact_bytes(weight[0].numel())
    return F.conv2d(x.to(exact), weight.to(exact), None, stride, padding, dilation, groups).to(torch.int32)


@without_values(int8_conv2d)
def _(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Tensor:
    shape = _conv_shape(x, weight.unsqueeze(0), 1, list(weight.shape[2:]), stride, padding, dilation)
    return x.new_empty(shape, dtype=torch.int32)


@operator
def int8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Exact product of bytes over the last axis. Shapes: x (N, ..., I) int8, weight (O, I) int8, acc (N, ..., O)."""
    exact = _exact_bytes(weight.shape[1])
    return F.linear(x.to(exact), weight.to(exact)).to(torch.int32)


@without_values(int8_linear)
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.int32)


@operator
def masked_conv2d(
    x: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Float convolution at the outputs that a mask names.

    Shapes: x (N, C, H, W), mask (N, O, H', W'), weight (O, C / groups, kh, kw), bias (O,), y as the mask.
    """
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).masked_fill(~mask, 0.0)


@operator
def masked_linear(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Float product at the outputs that a mask names. Shapes: x (N, I), mask (N, O), weight (O, I), bias (O,)."""
    return F.linear(x, weight, bias).masked_fill(~mask, 0.0)


@without_values(masked_conv2d, masked_linear)
def _(x: Tensor, mask: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(mask, dtype=x.dtype, memory_format=torch.contiguous_format)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    both: bool,
    *,
    sign: Callable[[Tensor], Tensor] = sign_pm1,
    dropout: float = 0.0,
) -> Tensor:
    """Attention by signs, each row of queries and keys with its mean magnitude as its scale.

        s_ij = <sign q_i, sign k_j> (mean|q_i| (mean|k_j| scale)) + mask_ij
        y_i  = sum_j softmax_j(s_i) v_j
        y_i  = mean|v| sum_j c_ij sign(v_j) / sum_j c_ij,    c_ij = 1 where s_ij >= 0, else 0        with `both`

    A sum over nothing is 0. A bool mask adds 0 where it is True and -inf elsewhere.

    Shapes: query (N, ..., T, d), key (N, ..., S, d), value (N, ..., S, e), mask broadcasts over (N, ..., T, S).
    """
    factor = query.abs().mean(-1, keepdim=True) * (key.abs().mean(-1).unsqueeze(-2) * scale)
    score = sign(query) @ sign(key).mT * factor
    if mask is not None:
        score = score + (score.new_zeros(()).where(mask, -math.inf) if mask.dtype == torch.bool else mask)
    if not both:
        return F.dropout(score.softmax(-1), dropout) @ value if dropout else score.softmax(-1) @ value
    chosen = (sign(score) + 1) / 2
    number = chosen.sum(-1, keepdim=True).clamp(min=1)
    return chosen @ sign(value) / number * value.abs().mean((-2, -1), keepdim=True)


@operator
def binary_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, both: bool
) -> Tensor:
    """Attention by signs, see `attend`."""
    return attend(query, key, value, mask, scale, both).contiguous()


@without_values(binary_attention)
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, both: bool) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@operator
def affine(acc: Tensor, scale: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Scaled sum of accumulator planes.

    Shapes: acc (N, ..., Q * O, ...) with planes and channels on `axis`, scale (Q, O), bias (O,), y (N, ..., O, ...).
    """
    per_channel = (-1, *(1,) * (acc.dim() - 1 - axis % acc.dim()))
    parts = torch.split(acc.to(torch.float32), scale.shape[1], axis)
    y: Tensor = parts[0] * scale[0].reshape(per_channel)
    for part, s in zip(parts[1:], scale[1:], strict=True):
        y = y + part * s.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


@without_values(affine)
def _(acc: Tensor, scale: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    shape = list(acc.shape)
    shape[axis] = scale.shape[1]
    return acc.new_empty(shape, dtype=torch.float32)
