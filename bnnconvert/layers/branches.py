"""What ties the branches of a group together: their sum, and the gate between two groups.

merge     y = (x_1 + ... + x_K) / K,   or   y = sum_i s_i x_i with learned s, 1/K at the start
gate      y = w x_i + (1 - w) m,   w = sigmoid(theta)       x_i the branch's own value, m that of all branches
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.layers.deployable import Deployable

_SOURCE = "Zhuang et al., Structured Binary Neural Networks, CVPR 2019, arXiv:1811.10413"


class BranchMerge(nn.Module):
    """Mean, or learned combination, of branches of one shape."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, branches: int, *, learned: bool) -> None:
        super().__init__()
        # One parameter each: a product with a number is cheaper than one with an entry of a vector.
        scales = (nn.Parameter(torch.tensor([1 / branches])) for _ in range(branches if learned else 0))
        self.scales = nn.ParameterList(scales)

    def forward(self, *branches: Tensor) -> Tensor:
        """Combined value."""
        if self.scales:
            branches = tuple(x * scale for x, scale in zip(branches, self.scales, strict=True))
        total = branches[0]
        for x in branches[1:]:
            total = total + x
        return total if self.scales else total / len(branches)


class SoftGate(Deployable):
    """Learned mixture of a branch's own value and that of all branches, half and half at the start."""

    source: ClassVar[str] = _SOURCE

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1))

    def forward(self, own: Tensor, merged: Tensor) -> Tensor:
        """Mixture."""
        return _mixed(own, merged, torch.sigmoid(self.theta))

    def deployed(self) -> "FixedGate":
        return FixedGate(torch.sigmoid(self.theta).detach())


class FixedGate(nn.Module):
    """A soft gate as the packed program carries it."""

    share: Tensor

    def __init__(self, share: Tensor) -> None:
        super().__init__()
        self.register_buffer("share", share)

    def forward(self, own: Tensor, merged: Tensor) -> Tensor:
        """Mixture."""
        return _mixed(own, merged, self.share)


def _mixed(own: Tensor, merged: Tensor, share: Tensor) -> Tensor:
    return merged + (own - merged) * share
