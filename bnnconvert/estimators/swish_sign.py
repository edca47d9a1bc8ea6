"""SwishSign of BNN+: the derivative of a smooth function that overshoots sign and comes back.

SS(x) = 2 s(bx) (1 + bx (1 - s(bx))) - 1                     s the logistic function
g_x   = g * b (2 - bx tanh(bx / 2)) / (1 + cosh(bx))
      = g * b (1 - u t) (1 - t^2)                            u = bx / 2,  t = tanh(u)

The last form has no cosh that could overflow. The slope at 0 is b; it is negative from |bx| = 2.39936 on, where SS is
1.19968, and stays so: the paper's tail is kept.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator

FLAT = 20.0
"""Beyond this u, 1 - tanh(u)^2 is 0 in every floating type; the limit keeps infinity times 0 away."""


class SwishSign(Estimator):
    """Derivative of SignSwish with sharpness `beta`; the paper tries 5 and 10."""

    source: ClassVar[str] = "Darabi et al., BNN+: Improved Binary Network Training, 2018, arXiv:1812.11800"

    def __init__(self, *, beta: Annotated[float, Field(gt=0)] = 5.0) -> None:
        super().__init__()
        self.beta = beta

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        u = (x * (self.beta / 2)).clamp_(-FLAT, FLAT)
        t = u.tanh()
        falling = torch.ops.aten.tanh_backward(grad, t)
        return falling.mul_(torch.rsub(u.mul_(t), self.beta, alpha=self.beta))  # type: ignore[no-any-return]
