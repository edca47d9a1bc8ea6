"""Operands of a few bits, on the way from float to binary: a relaxation of the sign that any recipe's stages can use.

    u = clip(-1, x, 1),   q = 2 floor((u + 1)(2^k - 1) / 2 + 1/2) / (2^k - 1) - 1        2^k levels in [-1, 1]
    g_x = g 1{|x| <= 1}                                                        straight through rounding

At one bit it is the sign. A weight is measured against its filter's largest: w = s q(w / s), s_o = max |W_o|, a
constant, so that a network keeps its scale while it loses bits.
"""

from typing import Any

import torch
from torch import Tensor

from bnnconvert.estimators.base import sign_pm1

_BOUND = 1 + torch.finfo(torch.float).eps  # hardtanh_backward masks the open interval
_TINY = torch.finfo(torch.float).tiny


def levels(x: Tensor, bits: int) -> Tensor:
    """`x` on 2^bits uniform levels from -1 to 1, with the gradient of clip(-1, x, 1)."""
    return _Levels.apply(x, bits)  # type: ignore[no-any-return, no-untyped-call]


def filter_levels(weight: Tensor, bits: int) -> Tensor:
    """A weight on 2^bits levels between plus and minus the largest magnitude of its filter. Shapes: (O, ...)."""
    axes = tuple(range(1, weight.dim()))
    scale = weight.detach().abs().amax(dim=axes, keepdim=True).clamp(min=_TINY)
    return levels(weight / scale, bits) * scale


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x)
        if bits == 1:  # near zero the sum below loses the sign
            return sign_pm1(x)
        half = (2**bits - 1) / 2
        return x.clamp(-1, 1).add_(1).mul_(half).add_(0.5).floor_().div_(half).sub_(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, -_BOUND, _BOUND), None
