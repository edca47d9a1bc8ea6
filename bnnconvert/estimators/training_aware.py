"""RBNN's training-aware approximation: a triangle that is wide and low at first, narrow and high in the end.

g_x = g * k * max(0, sqrt(2) t - t^2 |x|)
t   = t_min * (t_max / t_min)^progress, but at least `floor`,    k = max(1 / t, 1)

The triangle's half width is sqrt(2) / t and its area 2 k. The paper takes t from 0.01 to 10 for weights. For inputs
its authors hold t at 1 or more, which makes k = 1: `floor = 1.0`.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class TrainingAware(Estimator):
    """Triangular derivative that narrows over the run while k keeps the gradient's size."""

    source: ClassVar[str] = "Lin et al., Rotated Binary Neural Network, NeurIPS 2020, arXiv:2009.13055"
    t: Tensor
    k: Tensor

    def __init__(
        self,
        *,
        t_min: Annotated[float, Field(gt=0)] = 0.01,
        t_max: Annotated[float, Field(gt=0)] = 10.0,
        floor: Annotated[float, Field(ge=0)] = 0.0,
    ) -> None:
        super().__init__()
        self.t_min, self.t_max, self.floor = t_min, t_max, floor
        self.register_buffer("t", torch.tensor(t_min))
        self.register_buffer("k", torch.tensor(1.0))
        self.advance(0.0)

    def advance(self, progress: float) -> None:
        t = max(self.t_min * (self.t_max / self.t_min) ** progress, self.floor)
        self.t.fill_(t)
        self.k.fill_(max(1 / t, 1.0))

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        slope = self.k * self.t.square()
        height = math.sqrt(2) * self.k * self.t
        triangle = x.abs().mul_(-slope).add_(height).clamp_(min=0)
        return triangle.mul_(grad)
