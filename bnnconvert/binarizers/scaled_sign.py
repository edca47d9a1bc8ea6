"""Sign with the L2-optimal scale per filter, as BWN and XNOR-Net define it.

W^_o = alpha_o B_o,   B = sign(W),   alpha_o = mean|W_o|   (argmin ||W - alpha B||^2)

backward, with m = the estimator's derivative of sign and n = weights per filter:
  exact     g_W = B/n * sum_j g_j B_j + alpha m g      product rule
  paper     g_W = g (1/n + alpha m)                    as printed in the paper
  detached  g_W = alpha m g                            alpha is a constant (Bi-Real, ReActNet)
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bnnconvert.binarizers.base import LatentClip, Plane, WeightBinarizer, per_output
from bnnconvert.estimators.base import Estimator

AT_ONCE = 2**22
"""Products of weights and their signs: those of the largest layers are made some rows at a time, to save memory."""


class ScaledSignWeight(WeightBinarizer):
    """Sign of the latent weight times its mean magnitude per output channel."""

    source: ClassVar[str] = "Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279"
    choices: ClassVar[tuple[int, ...] | None] = (-1, 1)

    def __init__(
        self,
        *,
        estimator: Estimator,
        scale_grad: Literal["exact", "paper", "detached"] = "exact",
        clip: LatentClip | None = None,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.scale_grad = scale_grad
        self.clip = clip

    def planes(self, weight: Tensor) -> list[Plane]:
        pm1 = self.estimator(weight)
        # W * sign(W) rather than |W|: its gradient at W = 0 is sign(0) = +1, as everywhere here.
        alpha = _mean_products(weight.flatten(1), pm1.detach().flatten(1))
        if self.scale_grad == "exact":
            return [Plane(pm1, alpha)]
        alpha = alpha.detach()
        if self.scale_grad == "paper":
            per_filter = per_output(alpha, weight.dim()).clamp(min=1e-12) * weight[0].numel()
            pm1 = pm1 + (weight - weight.detach()) / per_filter
        return [Plane(pm1, alpha)]


def _mean_products(weight: Tensor, pm1: Tensor) -> Tensor:
    """Mean of the products in each row. Shapes: (O, n) both -> (O,)."""
    rows = max(1, AT_ONCE // weight.shape[1])
    if len(weight) <= rows:
        return (weight * pm1).mean(dim=1)
    return torch.cat(
        [(w * p).mean(dim=1) for w, p in zip(torch.split(weight, rows), torch.split(pm1, rows), strict=True)]
    )
