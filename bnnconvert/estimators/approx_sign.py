"""ApproxSign: the derivative of a piecewise quadratic that approaches sign.

f(x) = -1 | 2x + x^2 | 2x - x^2 | +1        on x < -1 | [-1, 0) | [0, 1) | 1 <= x
g_x  = g * max(0, 2 - 2|x|)
"""

from typing import ClassVar

import torch
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class ApproxSign(Estimator):
    """Triangular derivative, 2 at zero and 0 from |x| = 1."""

    source: ClassVar[str] = "Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278"

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        inside = x.abs().clamp_(max=1)
        if torch.compiler.is_compiling():  # which fuses what is written to memory here
            return 2 * (grad - grad * inside)
        return torch.addcmul(grad, grad, inside, value=-1, out=inside).mul_(2)
