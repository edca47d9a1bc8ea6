"""Ternary weights with the L2-optimal scale per filter.

    W^_o = a_o T_o,   T in {-1, 0, +1} is sign(W) where |W| >= t_o,   a_o = mean of |W_o| over those

    otwa   t_o keeps the r largest magnitudes, r = argmax_r (|w|_1 + ... + |w|_r)^2 / r: argmin ||W_o - a T||^2 (TSQ)
    twn    t_o = 0.7 mean|W_o|, which is nearly that for weights that are spread evenly (TWN)

    planes   T = (s_0 + s_1) / 2,   s_0 = +1 where T >= 0,   s_1 = +1 where T > 0
backward     g_W = g
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.binarizers.codes import pass_gradient
from bnnconvert.estimators.base import sign_pm1


class TernaryWeight(WeightBinarizer):
    """Sign of the large weights of a filter, zero for the small ones, times their mean magnitude."""

    source: ClassVar[str] = (
        "Wang et al., Two-Step Quantization, CVPR 2018; Li et al., Ternary Weight Networks, 2016, arXiv:1605.04711"
    )
    plane_count = 2
    choices: ClassVar[tuple[int, ...] | None] = (-1, 0, 1)

    def __init__(self, *, threshold: Literal["otwa", "twn"] = "otwa") -> None:
        super().__init__()
        self.threshold = threshold

    def planes(self, weight: Tensor) -> list[Plane]:
        kept, scale = self._kept(weight.detach())
        return ternary_planes(weight, kept, scale / 2)

    def forward(self, weight: Tensor) -> Tensor:
        kept, scale = self._kept(weight.detach())
        return pass_gradient(weight, sign_pm1(weight.detach()).mul_(kept).mul_(per_output(scale, weight.dim())))

    def _kept(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Which weights are not zero, and the scale. Shapes: those of weight, (O,)."""
        size = weight.abs().flatten(1)
        least = size.mean(dim=1, keepdim=True) * 0.7 if self.threshold == "twn" else _optimal(size)
        kept = size >= least
        scale = (size * kept).sum(dim=1) / kept.sum(dim=1)  # the largest weight is always kept
        return kept.view_as(weight), scale


def _optimal(size: Tensor) -> Tensor:
    """Least magnitude that the L2-optimal ternary filter keeps. Shapes: (O, n) -> (O, 1)."""
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, device=size.device)
    best = (ordered.cumsum(dim=1).square() / count).argmax(dim=1, keepdim=True)
    return ordered.gather(1, best)


def ternary_planes(weight: Tensor, kept: Tensor, half: Tensor) -> list[Plane]:
    """Planes of sign(weight) where it is kept and 0 elsewhere, times twice `half`. Shapes: half (O,)."""
    positive = (weight >= 0) & kept
    return [Plane(positive.logical_or(~kept).to(weight) * 2 - 1, half), Plane(positive.to(weight) * 2 - 1, half)]
