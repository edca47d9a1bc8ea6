"""Maxout of AdaBin: a learned slope on either side of zero.

y = p max(x, 0) + n min(x, 0)                                       p, n per channel
  = p relu(x) - n relu(-x), as the paper writes it

g_x = p g 1{x > 0} + n g 1{x <= 0},   g_p = sum g max(x, 0),   g_n = sum g min(x, 0)
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.channels import channel_sums, wide


class Maxout(nn.Module):
    """PReLU with a learned slope on the positive side as well.

    Shapes: x (N, C, ...), y the same.
    Source: Tu et al., AdaBin, ECCV 2022, arXiv:2208.08084
    """

    source: ClassVar[str] = "Tu et al., AdaBin, ECCV 2022, arXiv:2208.08084"

    def __init__(self, channels: int, *, slope: float = 0.25) -> None:
        super().__init__()
        self.positive = nn.Parameter(torch.ones(channels))
        self.negative = nn.Parameter(torch.full((channels,), slope))

    def forward(self, x: Tensor) -> Tensor:
        """Scale each side of zero."""
        if self.training and not torch.compiler.is_compiling():
            return _Trained.apply(x, self.positive, self.negative)  # type: ignore[no-any-return, no-untyped-call]
        return torch.relu(x) * wide(self.positive, x) + x.clamp(max=0) * wide(self.negative, x)


class _Trained(torch.autograd.Function):
    """The same up to rounding, with few sweeps over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        ctx.save_for_backward(x, positive, negative)
        return torch.prelu(x, negative).addcmul_(torch.relu(x), wide(positive - 1, x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, positive, negative = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, x, 0.0)  # g 1{x > 0}
        grad_x = (grad * wide(negative, x)).addcmul_(above, wide(positive - negative, x))
        by_positive = channel_sums(above.mul_(x))
        return grad_x, by_positive, channel_sums(grad * x) - by_positive
