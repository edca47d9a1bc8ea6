"""A learned factor per channel.

y = s_c x        g_x = s_c g,   g_s = sum of g x over all axes but c
"""

import torch
from torch import Tensor, nn

from bnnconvert.channels import scale


class ChannelScale(nn.Module):
    """Learned factor per channel, 1 at the start. Shapes: x (N, C, ...), y the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled x."""
        return scale(x, self.weight)
