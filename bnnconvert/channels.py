"""Arithmetic per channel for the trained thresholds and activations, with few sweeps over memory.

shift   y = x + b_c          g_x = g,   g_b = sum of g over all axes but c
"""

import math
from typing import Any

import torch
from torch import Tensor

ROW = 256
"""Values in a row of the product that sums channels."""


def wide(values: Tensor, like: Tensor) -> Tensor:
    """Values per channel, viewed so that they broadcast over `like`.

    Shapes: values (C,), like (N, C, ...).
    """
    return values.reshape(-1, *(1,) * (like.dim() - 2))


def channel_sums(x: Tensor) -> Tensor:
    """Sum over all axes but the channels'. Shapes: (N, C, ...) -> (C,)."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # A product with ones, on rows of several pixels where the channels are few: up to three times faster on a CPU
        # than torch.sum.
        channels = x.shape[1]
        fold = math.gcd(x.numel() // channels, max(1, ROW // channels))
        rows = x.permute(0, 2, 3, 1).reshape(-1, fold * channels)
        return rows.new_ones(1, len(rows)).matmul(rows).view(fold, channels).sum(0)
    return x.sum([axis for axis in range(x.dim()) if axis != 1])


def shift(x: Tensor, by: Tensor) -> Tensor:
    """Add one value per channel. Shapes: x (N, C, ...), by (C,)."""
    if torch.compiler.is_compiling():
        return x + wide(by, x)
    return _Shift.apply(x, by)  # type: ignore[no-any-return, no-untyped-call]


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: Tensor) -> Tensor:
        return x + wide(by, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, channel_sums(grad)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a b over all elements. Shapes: a and b alike, result ()."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))  # no product is written to memory
