"""Straight-through: the gradient passes sign unchanged.

g_x = g
"""

from typing import ClassVar

from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Identity(Estimator):
    """Unmasked straight-through estimator, used for weights together with clipping of the latent weight."""

    source: ClassVar[str] = "Courbariaux et al., BinaryConnect, NeurIPS 2015, arXiv:1511.00363"

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        return grad
