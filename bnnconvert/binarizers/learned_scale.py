"""Sign with a learned scale, per filter or per layer.

W^_o = |a_o| sign(W_o),   a_o starts at mean|W_o|, or at the median

backward, with m = the estimator's derivative of sign:
  g_W = |a_o| m g,   g_a = sign(a_o) sum_j g_j sign(W_j)

The absolute value keeps the scale from turning the filter's signs. BNN+'s regulariser (loss `scale-regularizer`) pulls
|W| towards it: for given weights its square form is least at the mean of |W|, its absolute form at the median.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import LatentClip, Plane, WeightBinarizer
from bnnconvert.estimators.base import Estimator


class LearnedScaleWeight(WeightBinarizer):
    """Sign of the latent weight times a learned positive scale."""

    source: ClassVar[str] = "Darabi et al., BNN+: Improved Binary Network Training, 2018, arXiv:1812.11800"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        estimator: Estimator,
        per: Literal["filter", "layer"] = "filter",
        start: Literal["mean", "median"] = "mean",
        clip: LatentClip | None = None,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.per, self.start, self.clip = per, start, clip
        self.scale = nn.Parameter(torch.ones(shape[0] if per == "filter" else ()))

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.estimator(weight), self.scale.abs())]

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        rows = weight.abs().reshape(len(weight) if self.per == "filter" else 1, -1)
        start = rows.mean(dim=1) if self.start == "mean" else rows.median(dim=1).values
        self.scale.copy_(start.reshape(self.scale.shape))
