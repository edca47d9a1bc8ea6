"""Deployed forms of binary layers: modules around the packed operators, built from a layer in evaluation mode.

A packed layer is up to four modules in a row, at the path of the layer that they replace:
`encode` (float to bits), `dot` (bits or floats to accumulators), `affine` (accumulators to float), and for a layer with
a gain `gained`, which reads the layer's input as well and adds the bias. An embedding is one, `table`.
"""

import math

import torch
from torch import Tensor, nn

from bnnconvert import bits
from bnnconvert.binarizers.base import Plane
from bnnconvert.errors import RefusalError
from bnnconvert.layers import operators
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.layers.linear import BinaryLinear


class Encode(nn.Module):
    """Bits of a float or int32 activation.

    Shapes: x (N, C, ...), thresholds (P, C or 1, T), start (P, C or 1), bits (N, P * C, ...).
    """

    thresholds: Tensor
    start: Tensor

    def __init__(self, thresholds: Tensor, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("start", start)

    def forward(self, x: Tensor) -> Tensor:
        """Bits, planes on the channel axis."""
        y: Tensor = operators.encode(x, self.thresholds, self.start)
        return y


class Dot(nn.Module):
    """What the four maps share: packed weight rows of M planes and the length `k` of a row in bits."""

    weight: Tensor
    k: int

    def __init__(self, weight: Tensor, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("weight", weight)


class _Map2d(Dot):
    def __init__(self, layer: BinaryConv2d, weight: Tensor, k: int) -> None:
        super().__init__(weight, k)
        self.in_channels = layer.weight.shape[1] * layer.groups
        self.kernel = list(layer.weight.shape[2:])
        self.stride, self.padding, self.dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
        self.groups, self.pad_bit = layer.groups, str(layer.pad_bit)


class BinaryDot2d(_Map2d):
    """Exact convolution of bits. Shapes: (N, P * C, H, W) -> (N, P * M * O, H', W') int32."""

    def forward(self, x_bits: Tensor) -> Tensor:
        """Accumulators."""
        y: Tensor = operators.binary_conv2d(
            x_bits,
            self.weight,
            self.in_channels,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.pad_bit,
        )
        return y


class SignedConv2d(_Map2d):
    """Convolution of floats with ±1 filters. Shapes: (N, C, H, W) -> (N, M * O, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """Accumulators."""
        y: Tensor = operators.signed_conv2d(
            x,
            self.weight,
            self.in_channels,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.pad_bit,
        )
        return y


class BinaryDotLinear(Dot):
    """Exact product of bits. Shapes: (N, ..., P * I) -> (N, ..., P * M * O) int32."""

    def forward(self, x_bits: Tensor) -> Tensor:
        """Accumulators."""
        y: Tensor = operators.binary_linear(x_bits, self.weight, self.k)
        return y


class SignedLinear(Dot):
    """Product of floats with ±1 rows. Shapes: (N, ..., I) -> (N, ..., M * O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Accumulators."""
        y: Tensor = operators.signed_linear(x, self.weight, self.k)
        return y


class SignedTable(nn.Module):
    """Table of ±1 rows with their scales. Shapes: weight (M, V, row_bytes), scale (M, V), indices (...) -> (..., D)."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, indices: Tensor) -> Tensor:
        """Rows."""
        y: Tensor = operators.signed_embedding(indices, self.weight, self.scale, self.features)
        return y


class Affine(nn.Module):
    """Scaled sum of accumulator planes, plus bias.

    Shapes: acc (N, Q * O, ...) or, for axis -1, (N, ..., Q * O); scale (Q, O), bias (O,).
    """

    scale: Tensor
    bias: Tensor | None

    def __init__(self, scale: Tensor, bias: Tensor | None, *, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, acc: Tensor) -> Tensor:
        """Float output of the layer."""
        y: Tensor = operators.affine(acc, self.scale, self.bias, self.axis)
        return y


class Gained(nn.Module):
    """Gain and bias of a layer. Shapes: x (N, C, ...), y (N, O, ...), bias broadcasts over y."""

    bias: Tensor | None

    def __init__(self, gain: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.gain = gain
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Float output of the layer."""
        y = self.gain(x, y)
        return y if self.bias is None else y + self.bias


class PackedLayer(nn.Module):
    """Holder of `encode`, `dot`, `affine` and `gained`, or of `table`; lives at the path of the layer it replaces."""


def packed_layer(layer: BinaryLayer, path: str) -> PackedLayer:
    """Deployed form of `layer`.

    Raises: RefusalError for a layer that is not binary yet or has a row without a packed form, has values that are not
        finite or sums too long.
    """
    if not (layer.weights_are_binary and (layer.is_weight_only or layer.inputs_are_binary)):
        raise RefusalError(
            f"{path}: its operands are still float in this stage of training; finish the fine-tuning first"
        )
    if layer.unpackable is not None:
        raise RefusalError(
            f"{path}: it trains and cannot be exported, as {layer.unpackable}; evaluate the run as it is, or convert "
            "with another recipe"
        )
    packed = PackedLayer()
    planes = layer.weight_planes()
    scale = layer.planes_scale(planes).detach().float().contiguous()
    added = layer.effective_bias()
    bias = None if added is None else added.detach().float().clone()
    if not (scale.isfinite().all() and (bias is None or bias.isfinite().all())):
        raise RefusalError(
            f"{path}: a scale or bias is not finite, so training has diverged; train again with a lower rate"
        )
    if isinstance(layer, BinaryEmbedding):
        weight, features = _rows(layer, planes, path)
        packed.add_module("table", SignedTable(weight, scale, features))
        return packed
    if layer.input_binarizer is not None:
        packed.add_module("encode", _encode(layer, path))
    packed.add_module("dot", _dot(layer, planes, path))
    gain, axis = layer.gain, -1 if isinstance(layer, BinaryLinear) else 1
    packed.add_module("affine", Affine(scale, bias if gain is None else None, axis=axis))
    if gain is not None:
        packed.add_module("gained", Gained(gain.deployed(), None if bias is None else gain.site.per_channel(bias)))
    return packed


def _encode(layer: BinaryLayer, path: str) -> Encode:
    assert layer.input_binarizer is not None
    encoder = layer.input_binarizer.encoder()
    thresholds = encoder.thresholds.detach().float().contiguous()
    if thresholds.isnan().any():
        raise RefusalError(
            f"{path}: an input threshold is NaN, so training has diverged; train again with a lower rate"
        )
    return Encode(thresholds, encoder.start.detach().clone())


def _dot(layer: BinaryLayer, planes: list[Plane], path: str) -> Dot:
    weight, k = _rows(layer, planes, path)
    if isinstance(layer, BinaryConv2d):
        return (SignedConv2d if layer.is_weight_only else BinaryDot2d)(layer, weight, k)
    return (SignedLinear if layer.is_weight_only else BinaryDotLinear)(weight, k)


def _is_pm1(values: Tensor) -> bool:
    """Whether all are -1 or +1, without a temporary of their size."""
    return all(float(torch.linalg.vector_norm(values.detach(), order)) == 1 for order in (-math.inf, math.inf))


def _rows(layer: BinaryLayer, planes: list[Plane], path: str) -> tuple[Tensor, int]:
    """Packed rows of the weight's planes, and the length of a row in bits. Shapes: (M, O, row_bytes)."""
    if not all(_is_pm1(plane.pm1) for plane in planes):
        raise RefusalError(f"{path}: the binarizer gives weights other than -1 and +1 in evaluation mode; mend it")
    signs = torch.stack([plane.pm1 > 0 for plane in planes])
    if isinstance(layer, BinaryConv2d):
        signs = signs.permute(0, 1, 3, 4, 2)  # (M, O, kh, kw, c): the order of the rows
    elif not isinstance(layer, BinaryLinear | BinaryEmbedding):
        raise RefusalError(f"{path}: layers of type {type(layer).__name__} have no packed form")
    rows = signs.flatten(2)
    k = rows.shape[-1]
    if k >= operators.EXACT_K:
        raise RefusalError(f"{path}: sums of {k} products are not exact in float32; keep this layer float")
    return torch.from_numpy(bits.pack_rows(rows.cpu().numpy())), k
