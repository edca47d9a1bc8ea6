"""HORQ: an activation, the sign of what is left of it, the sign of what is left then, and so on.

    R_1 = x,   H_i = sign(R_i),   b_i = mean|R_i|,   R_i+1 = R_i - b_i H_i        x^ = sum_i b_i H_i

backward   g_x = g 1{|x| <= 1}, with b as constants

The paper takes b anew for each receptive field, so that H_2 of a pixel differs from window to window: such an input
is no map of bits, and cannot be packed. Here b is one running mean per layer, updated by each training batch; then
H_1 .. H_K are the bits of a code that grows with x, H_1 the highest.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.codes import CodedInput, just_above
from bnnconvert.estimators.base import sign_pm1

PACE = 0.1
"""Weight of a new batch in the running means, as in batch norm."""
ABOVE_ONE = just_above(1.0)
"""The end of an open interval that holds 1."""


class HorqInput(CodedInput):
    """Residual signs of an activation; `order` is their number."""

    source: ClassVar[str] = "Li et al., HORQ, ICCV 2017, arXiv:1708.08687"
    scale: Tensor

    def __init__(self, channels: int, *, order: Annotated[int, Field(ge=1, le=8)] = 2) -> None:
        super().__init__(channels, bits=order)
        # What repeated halving gives for values spread evenly over [-1, 1], until there are data.
        self.register_buffer("scale", torch.tensor([0.5 ** (i + 1) for i in range(order)]))

    def code(self, x: Tensor) -> Tensor:
        code, rest = torch.zeros_like(x), x.detach()
        for scale in self.scale.to(x.dtype):
            bit = sign_pm1(rest)
            rest = torch.addcmul(rest, bit, scale, value=-1)
            code.mul_(2).add_(bit.add_(1).div_(2))
        return code

    def scales(self) -> Tensor:
        return self.scale.flip(0)

    def forward(self, x: Tensor) -> Tensor:
        y, means = _Residual.apply(x, self.scale)  # type: ignore[no-untyped-call]
        if self.training:
            self.scale.lerp_(means, PACE)
        return y  # type: ignore[no-any-return]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        for i in range(self.bits):  # each mean is of what the scales before it leave
            self.scale[i] = _Residual.apply(x, self.scale)[1][i]  # type: ignore[no-untyped-call]


class _Residual(torch.autograd.Function):
    """Quantized values, and the means of the residuals."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        y, rest, means = torch.zeros_like(x), x, []
        for step in scale.to(x.dtype):
            means.append(rest.abs().mean(dtype=scale.dtype))
            bit = sign_pm1(rest)
            y.addcmul_(bit, step)
            rest = torch.addcmul(x, bit, step, value=-1) if rest is x else rest.addcmul_(bit, step, value=-1)
        found = torch.stack(means)
        ctx.mark_non_differentiable(found)
        return y, found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad_x: Tensor = torch.ops.aten.hardtanh_backward(grad, x, -ABOVE_ONE, ABOVE_ONE)
        return grad_x, None
