"""RPReLU of ReActNet: a PReLU between two learned shifts.

t = x + b,   y = max(t, 0) + a min(t, 0) + c                        b, a, c per channel

g_x = g 1{t > 0} + a g 1{t <= 0},   g_b = sum g_x,   g_a = sum g min(t, 0),   g_c = sum g
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.channels import channel_sums, wide


class RPReLU(nn.Module):
    """PReLU with a learned shift per channel before and after it.

    Shapes: x (N, C, ...), y the same.
    Source: Liu et al., ReActNet, ECCV 2020, arXiv:2003.03488
    """

    source: ClassVar[str] = "Liu et al., ReActNet, ECCV 2020, arXiv:2003.03488"

    def __init__(self, channels: int, *, slope: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), slope))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shift, PReLU, shift."""
        if self.training and not torch.compiler.is_compiling():
            return _Trained.apply(x, self.shift_in, self.slope, self.shift_out)  # type: ignore[no-any-return, no-untyped-call]
        t = x + wide(self.shift_in, x)
        return torch.prelu(t, self.slope) + wide(self.shift_out, x)


class _Trained(torch.autograd.Function):
    """The same with a backward pass of few sweeps over memory; torch's own for PReLU takes twice as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
        t = x + wide(shift_in, x)
        ctx.save_for_backward(t, slope)
        return torch.prelu(t, slope).add_(wide(shift_out, x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        t, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, t, 0.0)  # g 1{t > 0}
        below = grad - above
        total, passed = channel_sums(grad), channel_sums(above)
        grad_x = torch.addcmul(above, below, wide(slope, t), out=above)
        grad_in = torch.addcmul(passed, slope, total - passed)
        grad_slope = channel_sums(below.mul_(t))
        return grad_x, grad_in, grad_slope, total
