"""The vote of an ensemble.

soft   y = sum_k a_k z_k                     z_k the logits of member k, sum of a = 1
hard   y = sum_k a_k 1{z_k = max z_k}        each member has its weight for the class that it takes for the likeliest
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


class Vote(nn.Module):
    """Weighted vote over members' logits; all weigh the same at the start. Shapes: (N, classes) each, y the same."""

    source: ClassVar[str] = "Zhu et al., Binary Ensemble Neural Network, CVPR 2019, arXiv:1806.07550"

    def __init__(self, members: int, *, kind: Literal["soft", "hard"]) -> None:
        super().__init__()
        self.members, self.kind = members, kind
        for number in range(1, members + 1):
            self.register_buffer(f"weight{number}", torch.tensor([1 / members]))

    def forward(self, *logits: Tensor) -> Tensor:
        """What the members come to."""
        parts = [self._voice(z) * weight for z, weight in zip(logits, self.buffers(), strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def set_weights(self, weights: Sequence[float]) -> None:
        """Let the members weigh as much as this, their sum made 1; all the same where nobody weighs anything."""
        total = sum(weights)
        for buffer, weight in zip(self.buffers(), weights, strict=True):
            buffer.fill_(weight / total if total > 0 else 1 / self.members)

    def _voice(self, logits: Tensor) -> Tensor:
        if self.kind == "soft":
            return logits
        return (logits >= logits.amax(dim=1, keepdim=True)).to(logits.dtype)
