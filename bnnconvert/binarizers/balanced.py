"""Balanced weights of BBG: the sign of the centred filter, about half of it +1.

V = W - mean W_o,   W^_o = a_o sign(V_o),   a_o = mean|V_o|, a constant

backward, with m = the estimator's derivative of sign at V and h = a m g:
  g_W = h - mean h_o          the centring projects the gradient

Centred on the mean the balance is near, not exact: a median would split a filter in halves.
"""

from typing import ClassVar

from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.estimators.base import Estimator


class BalancedWeight(WeightBinarizer):
    """Sign of the latent weight minus its filter's mean, times the mean distance from it."""

    source: ClassVar[str] = "Shen et al., Balanced Binary Neural Networks with Gated Residual, 2019, arXiv:1909.12117"

    def __init__(self, *, estimator: Estimator) -> None:
        super().__init__()
        self.estimator = estimator

    def planes(self, weight: Tensor) -> list[Plane]:
        rows = weight.flatten(1)
        centred = (rows - rows.mean(dim=1, keepdim=True)).view_as(weight)
        return [Plane(self.estimator(centred), centred.detach().abs().flatten(1).mean(dim=1))]
