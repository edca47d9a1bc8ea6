"""Triangle of any width: the derivative of a piecewise quadratic that reaches ±1 at |x| = w.

g_x = g * (2 / w) * max(0, 1 - |x| / w)

The area is 2, the height of sign's step, for every w. ApproxSign (`approx-sign`) is w = 1, so this is ApproxSign of
x / w, divided by w.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Triangle(Estimator):
    """Triangular derivative, 2 / `width` at zero and 0 from |x| = `width`."""

    source: ClassVar[str] = "Liu et al., Bi-Real Net, ECCV 2018, arXiv:1808.00278, for width 1"

    def __init__(self, *, width: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.width = width

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        return x.abs().mul_(-2 / self.width**2).add_(2 / self.width).clamp_(min=0).mul_(grad)
