"""HORQ as the paper has it: the scales and residual signs of an input are those of each window of the kernel.

    R_1 = X_p,   H_i = sign(R_i),   b_i = mean|R_i|,   R_i+1 = R_i - b_i H_i        X_p^ = sum_i b_i H_i

backward   g_x = g 1{|x| <= 1}, with b as constants

X_p is what position p of the output sees, so a value has other residual signs in each window that it is in. H_1 alone
is a map of bits, and b_1 the K map of XNOR-Net. As there, the divisor of a mean counts the padding; a padding of zeros
stays 0 in X_p^, which nothing is left of, and a padding of ones is +1 in each H_i.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Encoder, Plane, WindowInput, sign_encoder
from bnnconvert.binarizers.codes import just_above, pass_gradient
from bnnconvert.estimators.base import sign_pm1

ABOVE_ONE = just_above(1.0)
"""The end of an open interval that holds 1."""


class HorqPatchInput(WindowInput):
    """Residual signs and their scales in each window; `order` is their number."""

    source: ClassVar[str] = "Li et al., HORQ, ICCV 2017, arXiv:1708.08687"
    unpackable: ClassVar[str | None] = (
        "each window of its input has scales and residual signs of its own, so there is no map of bits to pack"
    )

    def __init__(self, channels: int, *, order: Annotated[int, Field(ge=1, le=8)] = 2) -> None:
        super().__init__(channels)
        self.order = order

    @torch.no_grad()
    def in_windows(self, x: Tensor, windows: Callable[[Tensor], Tensor], *, pads_ones: bool) -> Tensor:
        rest = windows(x + 0.0)  # copysign would take the sign of a -0.0; and what follows changes no tensor of others
        outside = windows(torch.ones_like(x[:1])) == 0
        total: Tensor | None = None
        for _ in range(self.order):
            scale = rest.abs().sum(dim=2, keepdim=True).div_(rest.shape[2])
            step = torch.copysign(scale, rest)
            rest.sub_(step).masked_fill_(outside, 0.0)
            total = step if total is None else total.add_(step)
        assert total is not None
        # A padding of ones is done: each scale has been added there, as the sign of 0 is +1.
        return total if pads_ones else total.masked_fill_(outside, 0.0)

    def passed(self, x: Tensor) -> Tensor:
        return _ClippedGradient.apply(x)  # type: ignore[no-any-return, no-untyped-call]

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(pass_gradient(self.passed(x), sign_pm1(x)))]

    def encoder(self) -> Encoder:
        return sign_encoder(torch.zeros(1))


class _ClippedGradient(torch.autograd.Function):
    """The identity, with the gradient of clip(-1, x, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, -ABOVE_ONE, ABOVE_ONE)  # type: ignore[no-any-return]
