"""The products of attention alone, between the projections before and behind it: float, of signs, and deployed.

y = softmax(q k^T / sqrt(d) + mask) v          for each head
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.estimators.base import Estimator
from bnnconvert.layers import operators
from bnnconvert.layers.deployable import Deployable


class Attention(nn.Module):
    """Attention over tokens, of several heads side by side in the features, or with the heads on an axis of their own.

    Shapes: q (N, T, H d), k (N, S, H d), v (N, S, H e), y (N, T, H e); without `heads` (N, ..., T, d) and so on.
        mask broadcasts over (N, H, T, S): what is added to the scores, or bool, True where to look.
    """

    def __init__(
        self, heads: int | None, *, scale: float | None = None, dropout: float = 0.0, is_causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.scale, self.dropout, self.is_causal = heads, scale, dropout, is_causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The heads side by side again."""
        if self.heads is None:
            return self.product(q, k, v, mask)
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        return self.product(q, k, v, mask).transpose(1, 2).flatten(2)

    def product(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of each head. Shapes: q (N, H, T, d), k (N, H, S, d), v (N, H, S, e), y (N, H, T, e)."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, self.is_causal, scale=self.scale)

    def extra_repr(self) -> str:
        """Heads, where they lie side by side, and what is not as usual."""
        unusual = {"heads": self.heads, "scale": self.scale, "is_causal": self.is_causal or None}
        return ", ".join(f"{name}={value}" for name, value in unusual.items() if value is not None)


class _OfSigns(Attention):
    def __init__(self, like: Attention, *, both: bool) -> None:
        super().__init__(like.heads, scale=like.scale, dropout=like.dropout, is_causal=like.is_causal)
        self.both = both

    def of_scores(self, q: Tensor) -> float:
        """Factor of the scores."""
        return float(q.shape[-1] ** -0.5) if self.scale is None else self.scale

    def mask_of(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask, or the one of causal attention."""
        if not self.is_causal:
            return mask
        return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()


class BinaryAttention(_OfSigns, Deployable):
    """Attention whose scores are products of signs and, with `both`, whose output is one too; see `operators.attend`.

    Source: Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279 (scores); Qin et al., BiBERT, ICLR 2022,
        arXiv:2203.06390 (both).
    """

    def __init__(self, like: Attention, *, estimator: Estimator, both: bool) -> None:
        super().__init__(like, both=both)
        self.estimator = estimator

    def product(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        mask = self.mask_of(q, k, mask)
        dropout = self.dropout if self.training else 0.0
        return operators.attend(q, k, v, mask, self.of_scores(q), self.both, sign=self.estimator, dropout=dropout)

    def deployed(self) -> nn.Module:
        return PackedAttention(self, both=self.both)


class PackedAttention(_OfSigns):
    """The same as an operator of the packed program."""

    def product(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y: Tensor = operators.binary_attention(q, k, v, self.mask_of(q, k, mask), self.of_scores(q), self.both)
        return y


class SplitInThree(nn.Module):
    """Three equal parts of the last axis. Shapes: x (..., 3 E), each y (..., E)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts."""
        return x.chunk(3, -1)
