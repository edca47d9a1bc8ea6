"""Network Sketching: a weight, the sign of what is left of it, and so on, each with its L2-optimal scale per filter.

    R_1 = W,   B_m = sign(R_m),   a_m = mean|R_m|,   R_m+1 = R_m - a_m B_m        W^_o = sum_m a_m B_m
    ||R_m+1||^2 = ||R_m||^2 - n a_m^2

backward   g_W = g: with every base W^ is nearer to W
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.binarizers.codes import pass_gradient
from bnnconvert.estimators.base import sign_pm1


class ResidualWeight(WeightBinarizer):
    """Residual signs of the latent weight: the sketch by direct approximation."""

    source: ClassVar[str] = "Guo et al., Network Sketching, CVPR 2017, arXiv:1706.02021"

    def __init__(self, *, bases: Annotated[int, Field(ge=1, le=8)] = 2) -> None:
        super().__init__()
        self.plane_count = bases

    def planes(self, weight: Tensor) -> list[Plane]:
        rest, found = weight.detach(), []
        for _ in range(self.plane_count):
            plane = Plane(sign_pm1(rest), scale := rest.abs().flatten(1).mean(dim=1))
            rest = rest - plane.pm1 * per_output(scale, weight.dim())
            found.append(plane)
        return found

    def forward(self, weight: Tensor) -> Tensor:
        return pass_gradient(weight, super().forward(weight))
