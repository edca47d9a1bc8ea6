"""The product of attention alone, between the projections before and behind it.

y = softmax(q k^T / sqrt(d) + mask) v          for each head
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attention of several heads over tokens.

    Shapes: q (N, T, H d), k and v (N, S, H d), mask (T, S), y (N, T, H d).
    """

    def __init__(self, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The heads side by side again."""
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return y.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """Heads."""
        return f"heads={self.heads}"


class SplitInThree(nn.Module):
    """Three equal parts of the last axis. Shapes: x (..., 3 E), each y (..., E)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts."""
        return x.chunk(3, -1)
