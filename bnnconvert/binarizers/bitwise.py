"""Bitwise neural networks: weights, biases and activations in {-1, +1}, first relaxed by tanh.

phase 1   a = sum_j tanh(W_j) z_j + tanh(b),   z = tanh(x)          plain derivatives
phase 2   a = sum_j sign(W_j) z_j + sign(b),   z = sign(x)          the derivative of sign is left out: g_x = g

Phase 2 starts from the latent weights of phase 1. The paper's third weight, 0 for a share of the smallest, is left out.
"""

from typing import ClassVar

from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.estimators.identity import Identity

_SOURCE = "Kim and Smaragdis, Bitwise Neural Networks, ICML workshop 2015, arXiv:1601.06071"


class BitwiseWeight(WeightBinarizer):
    """Sign of the latent weight and of the bias, without a scale."""

    source: ClassVar[str] = _SOURCE

    def __init__(self) -> None:
        super().__init__()
        self.estimator = Identity()

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.estimator(weight))]

    def relaxed(self, weight: Tensor) -> Tensor:
        return weight.tanh()

    def bias(self, bias: Tensor, *, binary: bool) -> Tensor:
        signs: Tensor = self.estimator(bias)
        return signs if binary else bias.tanh()


class BitwiseInput(SignInput):
    """Sign of the activation."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, channels: int) -> None:
        super().__init__(channels, estimator=Identity())

    def relaxed(self, x: Tensor) -> Tensor:
        return x.tanh()
