"""RPReLU of ReActNet: a PReLU between two learned shifts.

y = PReLU_c(x + shift_in_c) + shift_out_c
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        per_channel = (-1, *(1,) * (x.dim() - 2))
        y = F.prelu(x + self.shift_in.reshape(per_channel), self.slope)
        return y + self.shift_out.reshape(per_channel)
