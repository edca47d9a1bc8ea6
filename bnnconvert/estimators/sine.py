"""The derivative of a sine between its crests.

f(x) = sin(w x)  where |w x| <= pi / 2,  sign(x) beyond
g_x  = g * w cos(w x) 1{|w x| <= pi / 2}

BiPer takes the sine of the square wave's own period as surrogate. Its forward is periodic and so is its gradient
(binarizer `biper`); here the forward is sign, which rises once, and so does f: the branch around 0 is BiPer's.
"""

import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Sine(Estimator):
    """Cosine arch of height `frequency` over |x| <= pi / (2 `frequency`); the default covers [-1, 1]."""

    source: ClassVar[str] = "Vargas et al., BiPer, CVPR 2024, arXiv:2404.01278"

    def __init__(self, *, frequency: Annotated[float, Field(gt=0)] = math.pi / 2) -> None:
        super().__init__()
        self.frequency = frequency

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        # At the bound the cosine rounds to a hair below 0, which the second clamp takes away.
        angle = (x * self.frequency).clamp_(-math.pi / 2, math.pi / 2)
        return angle.cos_().clamp_(min=0).mul_(self.frequency).mul_(grad)
