"""PReLU with a slope per channel, and a backward pass of few sweeps over memory.

y = max(x, 0) + a min(x, 0)                g_x = g 1{x > 0} + a g 1{x <= 0},   g_a = sum g min(x, 0)
"""

from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.channels import channel_sums, wide


class ChannelPReLU(nn.PReLU):
    """torch's PReLU, trained in half its time on a CPU. Shapes: x (N, C, ...), y the same."""

    def forward(self, input: Tensor) -> Tensor:
        """max(x, 0) + a min(x, 0)."""
        if self.training and not torch.compiler.is_compiling():
            return _Trained.apply(input, self.weight)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(input)


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, x, 0.0)  # g 1{x > 0}
        below = grad - above
        grad_x = torch.addcmul(above, below, wide(slope, x), out=above)
        return grad_x, channel_sums(below.mul_(x))
