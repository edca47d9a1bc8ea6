"""Plain sign, without a scale.

weights   W^ = sign(W)            inputs   x^ = sign(x)
backward  by the estimator; the latent weight is clipped to [-clip, clip] after each step
"""

from typing import ClassVar

import torch
from torch import Tensor

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, WeightBinarizer, sign_encoder
from bnnconvert.estimators.base import Estimator


class SignWeight(WeightBinarizer):
    """Sign of the latent weight."""

    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def __init__(self, *, estimator: Estimator, clip: float | None = 1.0) -> None:
        super().__init__()
        self.estimator = estimator
        self.clip = clip

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.estimator(weight))]


class SignInput(InputBinarizer):
    """Sign of the activation."""

    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def __init__(self, channels: int, *, estimator: Estimator) -> None:
        super().__init__(channels)
        self.estimator = estimator

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(self.estimator(x))]

    def encoder(self) -> Encoder:
        return sign_encoder(torch.zeros(1))
