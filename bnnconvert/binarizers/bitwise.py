"""Bitwise neural networks: weights, biases and activations in {-1, +1}, first relaxed by tanh.

phase 1   a = sum_j tanh(W_j) z_j + tanh(b),   z = tanh(x)          plain derivatives
phase 2   a = sum_j w_j z_j + sign(b),         z = sign(x)          the derivative of sign is left out: g_W = g, g_x = g
          w = sign(W), or with a sparsity  w = sign(W) where |W| > t, else 0;   the bias as well

t leaves a share `sparsity` of the layer's weights at 0, and moves after each step. Phase 2 starts from the latent
weights of phase 1, whose tanh has the same order, and so the same signs and zeros. A weight of three values takes two
planes, of which each counts a half.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.binarizers.codes import pass_gradient, sampled
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.binarizers.ternary import ternary_planes
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.estimators.identity import Identity

_SOURCE = "Kim and Smaragdis, Bitwise Neural Networks, ICML workshop 2015, arXiv:1601.06071"


class BitwiseWeight(WeightBinarizer):
    """Sign of the latent weight and of the bias, without a scale; 0 for a share `sparsity` of the smallest."""

    source: ClassVar[str] = _SOURCE
    bound: Tensor | None

    def __init__(self, *, sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__()
        self.estimator = Identity()
        self.sparsity = sparsity
        self.plane_count = 2 if sparsity else 1
        self.register_buffer("bound", torch.zeros(()) if sparsity else None)

    def planes(self, weight: Tensor) -> list[Plane]:
        if self.bound is None:
            return [Plane(self._bits(weight))]
        half = weight.new_full((len(weight),), 0.5)
        return ternary_planes(weight.detach(), weight.detach().abs() > self.bound, half)

    def forward(self, weight: Tensor) -> Tensor:
        return self._bits(weight)

    def relaxed(self, weight: Tensor) -> Tensor:
        return weight.tanh()

    def bias(self, bias: Tensor, *, binary: bool) -> Tensor:
        return self._bits(bias) if binary else bias.tanh()

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        if self.bound is not None:
            sizes = sampled(weight).abs()  # all of them but in a large layer, where ordering them would take longest
            count = min(round(self.sparsity * len(sizes)), len(sizes) - 1)
            self.bound.copy_(sizes.kthvalue(count).values if count > 0 else torch.zeros(()))

    def after_step(self, weight: Tensor, *, binary: bool) -> None:
        if binary:
            self.calibrate(weight)

    def _bits(self, latent: Tensor) -> Tensor:
        if self.bound is None:
            return self.estimator(latent)  # type: ignore[no-any-return]
        # Weights at 0 have a gradient, too, so that they can come back.
        return pass_gradient(latent, sign_pm1(latent.detach()).mul_(latent.detach().abs() > self.bound))


class BitwiseInput(SignInput):
    """Sign of the activation."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, channels: int) -> None:
        super().__init__(channels, estimator=Identity())

    def relaxed(self, x: Tensor) -> Tensor:
        return x.tanh()
