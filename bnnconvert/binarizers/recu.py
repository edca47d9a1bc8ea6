"""ReCU, the rectified clamp unit: standardised weights whose tails are pulled back to where their signs can turn.

V   = (W - mean W_o) / std W_o * 2 sqrt(2)              per filter, unbiased, inside the gradient
V'  = clamp(V, -Q, Q),   Q = -mean|V| ln(2 - 2 tau)     over the layer: quantile tau of a Laplace distribution
W^  = |a_o| sign(V'),    a_o learned, starts at mean|W_o - mean W_o|
tau = A e^progress + B,  from tau_min to tau_max

backward: the estimator's derivative at V', no gradient outside ±Q ("dead" weights), Q a constant; g_a as for any scale

The clamp changes no sign, so nothing of it is left at run time. The authors start a_o from U(0, 1) and train from
scratch; ours starts at the scale of least squared error, which a pretrained filter has.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.estimators.base import Estimator

Share = Annotated[float, Field(ge=0.5, lt=1)]
"""Below a half the quantile would be negative."""


class RecuWeight(WeightBinarizer):
    """Sign of the standardised, clamped latent weight times a learned positive scale."""

    source: ClassVar[str] = "Xu et al., ReCU, ICCV 2021, arXiv:2103.12369"
    tau: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        estimator: Estimator,
        tau_min: Share = 0.85,
        tau_max: Share = 0.99,
        epsilon: Annotated[float, Field(gt=0)] = 1e-5,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.tau_min, self.tau_max, self.epsilon = tau_min, tau_max, epsilon
        self.register_buffer("tau", torch.tensor(tau_min))
        self.scale = nn.Parameter(torch.ones(shape[0]))

    def advance(self, progress: float) -> None:
        share = (math.exp(progress) - 1) / (math.e - 1)
        self.tau.fill_(self.tau_min + (self.tau_max - self.tau_min) * share)

    def standardised(self, weight: Tensor) -> Tensor:
        """Weights of each filter centred, in units of deviation / (2 sqrt(2)), clamped at the layer's quantile."""
        rows = weight.flatten(1)
        variance, mean = torch.var_mean(rows, dim=1, correction=min(1, rows.shape[1] - 1), keepdim=True)
        rows = (rows - mean) * ((variance + self.epsilon).rsqrt() * (2 * math.sqrt(2)))
        quantile = -rows.detach().abs().mean() * torch.log(2 - 2 * self.tau)
        return torch.clamp(rows, -quantile, quantile).reshape(weight.shape)

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.estimator(self.standardised(weight)), self.scale.abs())]

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        rows = weight.flatten(1)
        self.scale.copy_((rows - rows.mean(dim=1, keepdim=True)).abs().mean(dim=1))
