"""The packed operators in numpy, on words: the session's executor and the oracle of any faster one.

    acc = K - 2 m,   m = popcount(a xor w)                       one row of K bits
    acc = K_valid - 2 (m - m_pad)                                at a zero-padded border

A padded bit is 0 here, so it counts as a mismatch where the weight bit is 1. How many those are (m_pad) and how many
bits are real (K_valid) depends on the position only: both fold into a constant per filter and position, which is
found from the taps that really fall outside, for any kernel, stride, dilation and padding.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bnnconvert.artifact.schema import Array
from bnnconvert.bits import Bits, Bytes, Words, pack_words, unpack_rows
from bnnconvert.errors import UsageError

Accumulators = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

TILE = 2**14
"""Words handled at a time, so that the intermediate results stay in cache."""


def encode(x: Array, thresholds: Array, start: Bits) -> Bits:
    """Bits of an activation; as the operator of the same name in `layers/operators.py`.

    Shapes: x (N, C, ...), thresholds (P, C or 1, T), start (P, C or 1), bits (N, P * C, ...).
    """
    none = np.inf if thresholds.dtype.kind == "f" else np.iinfo(thresholds.dtype).max
    planes, tail = len(start), (1,) * (x.ndim - 2)
    bits = np.empty((len(x), planes, *x.shape[1:]), np.bool_)
    for plane in range(planes):
        out = bits[:, plane]
        out[:] = start[plane].reshape(-1, *tail)
        for row in thresholds[plane].T:
            threshold = row.reshape(-1, *tail)
            reached = x >= threshold
            out ^= reached if (row != none).all() else reached & (threshold != none)
    return bits.reshape(len(x), planes * x.shape[1], *x.shape[2:])


def affine(acc: Array, scale: Floats, bias: Floats | None, *, axis: int) -> Floats:
    """Scaled sum of accumulator planes, in the operator's order of additions.

    Shapes: acc (N, ..., Q * O, ...) with planes and channels on `axis`, scale (Q, O), bias (O,), y (N, ..., O, ...).
    """
    tail = (1,) * (acc.ndim - 1 - axis % acc.ndim)
    parts = np.split(acc, len(scale), axis)
    y: Floats = parts[0].astype(np.float32)
    y *= scale[0].reshape(-1, *tail)
    for part, s in zip(parts[1:], scale[1:], strict=True):
        y += part.astype(np.float32) * s.reshape(-1, *tail)
    if bias is not None:
        y += bias.reshape(-1, *tail)
    return y


class SignedEmbedding:
    """Rows of a table by their numbers; as the operator of the same name in `layers/operators.py`.

    Shapes: indices (...), weight (M, V, row_bytes), scale (M, V), y (..., features).
    Raises: UsageError for a number beyond the table.
    """

    def __init__(self, weight: Bytes, scale: Floats, *, features: int) -> None:
        self.weight, self.scale, self.features = weight, scale, features

    def __call__(self, indices: Array) -> Floats:
        """Rows."""
        outside = (indices < 0) | (indices >= self.scale.shape[1])
        if outside.any():
            number = indices[outside][0]
            raise UsageError(
                f"Row {number:,} of a table of {self.scale.shape[1]:,} rows does not exist; look at the input."
            )
        y: Floats = np.zeros((*indices.shape, self.features), np.float32)
        for rows, scale in zip(self.weight, self.scale, strict=True):
            signs = unpack_rows(rows[indices], self.features).astype(np.float32) * 2 - 1
            y += signs * scale[indices][..., None]
        return y


def quantize(x: Array, factor: float) -> Array:
    """Bytes of an activation; as the operator of the same name in `layers/operators.py`. Shapes: those of x."""
    scaled = x * np.float32(factor)
    return np.where(np.isnan(scaled), 127, np.clip(np.rint(scaled), -127, 127)).astype(np.int8)


class Int8Conv2d:
    """Convolution of bytes, tap by tap: products in float64 are exact and fast.

    Shapes: x (N, C, H, W), weight (O, C / groups, kh, kw), acc (N, O, H', W').
    """

    def __init__(
        self,
        weight: Array,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.weight = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def __call__(self, x: Array) -> Accumulators:
        """Accumulators."""
        (ph, pw), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        *_, kh, kw = self.weight.shape
        height = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
        width = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
        acc = np.zeros((len(x), self.groups, self.weight.shape[1], height * width))
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
                tap = padded[:, :, rows, columns].reshape(len(x), self.groups, -1, height * width)
                acc += self.weight[..., i, j] @ tap
        return acc.astype(np.int32).reshape(len(x), -1, height, width)


def int8_linear(x: Array, weight: Array) -> Accumulators:
    """Product of bytes. Shapes: x (N, ..., I), weight (O, I), acc (N, ..., O)."""
    return (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.int32)


class MaskedConv2d:
    """Float convolution at the outputs that a mask names; windows are gathered and multiplied for those alone.

    Shapes: x (N, C, H, W), mask (N, O, H', W'), weight (O, C / groups, kh, kw), bias (O,), y as the mask.
    """

    def __init__(
        self,
        weight: Floats,
        bias: Floats,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.rows, self.bias, self.shape = weight.reshape(len(weight), -1), bias, weight.shape[1:]
        self.stride, self.padding, self.dilation, self.outputs = stride, padding, dilation, len(weight) // groups

    def __call__(self, x: Floats, mask: Bits) -> Floats:
        """Float output."""
        (ph, pw), (sh, sw), (dh, dw) = self.padding, self.stride, self.dilation
        channels, kh, kw = self.shape
        padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
        reach = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, (2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
        y, many = np.zeros(mask.shape, np.float32), max(1, TILE // self.rows.shape[1])
        for output, (row, bias) in enumerate(zip(self.rows, self.bias, strict=True)):
            first = output // self.outputs * channels
            places = np.stack(np.nonzero(mask[:, output]))
            for begin in range(0, places.shape[1], many):
                n, i, j = places[:, begin : begin + many]
                gathered = windows[n, first : first + channels, i, j].reshape(len(n), -1)
                y[n, output, i, j] = gathered @ row + bias
        return y


def masked_linear(x: Floats, mask: Bits, weight: Floats, bias: Floats) -> Floats:
    """Float product at the outputs that a mask names. Shapes: x (N, I), mask (N, O), weight (O, I), bias (O,)."""
    y = np.zeros(mask.shape, np.float32)
    for output in np.flatnonzero(mask.any(0)):
        rows = mask[:, output]
        y[rows, output] = x[rows] @ weight[output] + bias[output]
    return y


def binary_attention(
    query: Floats, key: Floats, value: Floats, mask: Array | None, *, scale: float, both: bool
) -> Floats:
    """Attention by signs; as the operator of the same name in `layers/operators.py`.

    Shapes: query (N, ..., T, d), key (N, ..., S, d), value (N, ..., S, e), mask broadcasts over (N, ..., T, S).
    """
    factor = np.abs(query).mean(-1, keepdims=True) * (np.abs(key).mean(-1)[..., None, :] * np.float32(scale))
    score: Floats = _signs(query) @ _signs(key).swapaxes(-1, -2) * factor
    if mask is not None:
        score += np.where(mask, np.float32(0), -np.float32(np.inf)) if mask.dtype == np.bool_ else mask
    if both:
        chosen = (score >= 0).astype(np.float32)
        number = np.maximum(chosen.sum(-1, keepdims=True), np.float32(1))
        y: Floats = chosen @ _signs(value) / number
        y *= np.abs(value).mean((-2, -1), keepdims=True)
        return y
    weights = np.exp(score - score.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ value  # type: ignore[no-any-return]


def _signs(x: Floats) -> Floats:
    return (x >= 0).astype(np.float32) * 2 - 1


class BinaryConv2d:
    """Convolution of bits with packed rows.

    Shapes: bits (N, P * C, H, W), weight (M, O, row_bytes), acc (N, P * M * O, H', W').
    """

    def __init__(
        self,
        weight: Bytes,
        *,
        in_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        pad_bit: str,
    ) -> None:
        self.channels, self.groups, self.per_group = in_channels, groups, in_channels // groups
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.zero_padded = pad_bit == "zero" and any(padding)
        self.border = pack_words(np.full(self.per_group, pad_bit == "one"))
        self.planes, self.out, _ = weight.shape
        taps = math.prod(kernel)
        bits = unpack_rows(weight, taps * self.per_group)
        bits = bits.reshape(self.planes, groups, self.out // groups, taps, self.per_group)
        self.ones = bits.sum(-1, dtype=np.float64)
        by_group = pack_words(bits).swapaxes(0, 1).reshape(groups, self.planes * self.out // groups, taps, -1)
        self.rows = [_columns([rows[:, t] for t in range(taps)], self.per_group) for rows in by_group]
        self.constant: tuple[tuple[int, ...], Array] | None = None

    def __call__(self, bits: Bits) -> Accumulators:
        """Accumulators."""
        count, height, width = len(bits), *bits.shape[2:]
        words = self._words(bits)
        rows, columns = self._positions(0, height), self._positions(1, width)
        planes, size = words.shape[3], (rows.shape[1], columns.shape[1])
        acc = np.empty((count, planes, self.planes, self.groups, self.out // self.groups, math.prod(size)), np.int32)
        for plane in range(planes):
            for group in range(self.groups):
                taps = [words[:, _run(i), _run(j), plane, group] for i in rows for j in columns]
                windows = _columns([t.reshape(-1, t.shape[-1]) for t in taps], self.per_group)
                m = _mismatches(windows, self.rows[group], self.per_group * len(taps))
                m = m.reshape(self.planes, -1, count, math.prod(size)).transpose(2, 0, 1, 3)
                np.multiply(m, -2, out=acc[:, plane, :, group], dtype=np.int32)
        acc += self._constant(height, width)
        return acc.reshape(count, -1, *size)

    def _words(self, bits: Bits) -> Words:
        """Packed channels of the padded image. Shapes: (N, P * C, H, W) -> (N, H + 2 ph, W + 2 pw, P, G, words)."""
        last = np.ascontiguousarray(bits.transpose(0, 2, 3, 1))
        words = pack_words(last.reshape(*last.shape[:3], -1, self.groups, self.per_group))
        if not any(self.padding):
            return words
        (ph, pw), (n, h, w) = self.padding, words.shape[:3]
        padded = np.empty((n, h + 2 * ph, w + 2 * pw, *words.shape[3:]), words.dtype)
        padded[:] = self.border
        padded[:, ph : ph + h, pw : pw + w] = words
        return padded

    def _positions(self, axis: int, size: int) -> npt.NDArray[np.intp]:
        """Padded coordinates that each tap reads. Shapes: (k, outputs)."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        count = (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1
        return np.arange(self.kernel[axis])[:, None] * self.dilation[axis] + np.arange(count) * self.stride[axis]

    def _constant(self, height: int, width: int) -> Array:
        """K_valid + 2 m_pad. Shapes: (M, G, O / G, H' W'), or a single K where no tap falls outside."""
        if not self.zero_padded:
            return np.array(self.per_group * math.prod(self.kernel), np.int32)
        if self.constant is None or self.constant[0] != (height, width):
            inside = [
                (p >= pad) & (p < pad + size)
                for p, pad, size in zip(
                    (self._positions(0, height), self._positions(1, width)), self.padding, (height, width), strict=True
                )
            ]
            valid = inside[0][:, None, :, None] & inside[1][None, :, None, :]
            valid = valid.reshape(math.prod(self.kernel), -1)
            constant = self.per_group * valid.sum(0) + 2 * (self.ones @ ~valid)
            self.constant = (height, width), constant.astype(np.int32)
        return self.constant[1]


class BinaryLinear:
    """Product of bits with packed rows.

    Shapes: bits (N, ..., P * I), weight (M, O, row_bytes), acc (N, ..., P * M * O).
    """

    def __init__(self, weight: Bytes, *, in_features: int) -> None:
        self.features = in_features
        rows = pack_words(unpack_rows(weight, in_features))
        self.rows = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]).T)

    def __call__(self, bits: Bits) -> Accumulators:
        """Accumulators."""
        words = pack_words(bits.reshape(-1, bits.shape[-1] // self.features, self.features))
        parts = []
        for plane in range(words.shape[1]):
            m = _mismatches(np.ascontiguousarray(words[:, plane].T), self.rows, self.features)
            parts.append(self.features - 2 * m.T.astype(np.int32))
        return np.concatenate(parts, -1).reshape(*bits.shape[:-1], -1)


def _run(positions: npt.NDArray[np.intp]) -> slice:
    """Evenly spaced positions as a slice."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    return slice(int(positions[0]), int(positions[-1]) + 1, step)


def _columns(taps: Sequence[Words], k: int) -> Words:
    """Words of all taps, one tap after another; taps of at most 32 bits share 64-bit words.

    Shapes: taps (L, words) each, result (total words, L).
    """
    per_word = 64 // k if len(taps) > 1 else 1
    if per_word < 2:
        return np.stack([tap[:, i] for tap in taps for i in range(tap.shape[1])])
    columns = np.zeros((-(-len(taps) // per_word), len(taps[0])), np.uint64)
    for number, tap in enumerate(taps):
        columns[number // per_word] |= tap[:, 0].astype(np.uint64) << np.uint64(number % per_word * k)
    return columns


def _mismatches(windows: Words, rows: Words, k: int) -> npt.NDArray[np.unsignedinteger]:
    """Number of differing bits of each window and each row of `k` bits.

    Shapes: windows (words, L), rows (words, R), result (R, L).
    """
    total = np.zeros((rows.shape[1], windows.shape[1]), np.min_scalar_type(k))
    wide = min(windows.shape[1], TILE)
    high = max(1, TILE // max(1, wide))
    different, counts = np.empty((high, wide), windows.dtype), np.empty((high, wide), np.uint8)
    for left in range(0, windows.shape[1], TILE):
        for top in range(0, rows.shape[1], high):
            part = total[top : top + high, left : left + TILE]
            d, c = different[: part.shape[0], : part.shape[1]], counts[: part.shape[0], : part.shape[1]]
            for window, row in zip(windows[:, left : left + TILE], rows[:, top : top + high, None], strict=True):
                np.bitwise_xor(window, row, out=d)
                np.bitwise_count(d, out=c)
                part += c
    return total
