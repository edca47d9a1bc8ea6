"""The soft sign of DSQ at one bit, with a fixed sharpness.

f(x) = s tanh(k x) on |x| <= l, ±1 beyond          s = 1 / (1 - a),   k = ln(2 / a - 1) / (2 l)
g_x  = g * s k (1 - tanh(k x)^2) 1{|x| <= l}

s makes f reach ±1 exactly at ±l. a -> 0 is sign, a -> 1 the line x / l. The binarizers `dsq` learn a and l.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Dsq(Estimator):
    """Derivative of DSQ's one tanh segment over [-`limit`, `limit`], with distance `alpha` from sign."""

    source: ClassVar[str] = "Gong et al., Differentiable Soft Quantization, ICCV 2019, arXiv:1908.05033"

    def __init__(
        self,
        *,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        limit: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        self.sharpness = math.log(2 / alpha - 1) / (2 * limit)
        self.gain = self.sharpness / (1 - alpha)
        # hardtanh_backward masks the open interval; one step above the limit closes it.
        self.bound = float(torch.nextafter(torch.tensor(limit), torch.tensor(math.inf)))

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        inside = torch.ops.aten.hardtanh_backward(grad, x, -self.bound, self.bound)
        curve = (x * self.sharpness).tanh_()
        return torch.ops.aten.tanh_backward(inside, curve).mul_(self.gain)  # type: ignore[no-any-return]
