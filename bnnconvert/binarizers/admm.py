"""ADMM: weights split into a float part and a binary one that draw each other near.

    min f(W) + rho / 2 ||W - G + lambda||^2,   G = alpha Q,  Q in {-1, +1},  alpha > 0 per layer
    every n steps   V = W + lambda,   Q = sign(V),  alpha = mean |V|,   lambda <- V - G

While the weights of a stage are float, they train under that penalty (loss `admm`, whose weight is rho); when they
become binary, W := projection of W. That is the paper's W := G where both have met; where n steps at a small rate were
too few to follow G, the duals have run ahead and turned its signs, and W is what has been trained.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.estimators.base import Estimator, sign_pm1


class AdmmWeight(WeightBinarizer):
    """Sign times the layer's mean magnitude, approached by the alternating direction method of multipliers."""

    source: ClassVar[str] = "Leng et al., Extremely Low Bit Neural Network, AAAI 2018, arXiv:1707.09870"
    target: Tensor
    dual: Tensor
    steps: Tensor

    def __init__(
        self, shape: tuple[int, ...], *, estimator: Estimator, every: Annotated[int, Field(gt=0)] = 100
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.every = every
        self.register_buffer("target", torch.zeros(shape))
        self.register_buffer("dual", torch.zeros(shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.estimator(weight), weight.detach().abs().mean().expand(weight.shape[0]))]

    def penalty(self, weight: Tensor) -> Tensor:
        """||W - G + lambda||^2 / 2."""
        return (weight - self.target + self.dual).square().sum() / 2

    def calibrate(self, weight: Tensor) -> None:
        if self.steps > 0:  # the end of the penalty; at the conversion the float weights stay
            weight.copy_(project(weight))
        self.target.copy_(project(weight))
        self.dual.zero_()
        self.steps.zero_()

    def after_step(self, weight: Tensor, *, binary: bool) -> None:
        if binary:
            return
        self.steps += 1
        if int(self.steps) % self.every == 0:
            value = weight + self.dual
            self.target.copy_(project(value))
            self.dual.copy_(value - self.target)


def project(value: Tensor) -> Tensor:
    """The nearest alpha Q with Q in {-1, +1} and one alpha."""
    return sign_pm1(value) * value.abs().mean()
