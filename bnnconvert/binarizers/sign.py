"""Plain sign, without a scale.

weights   W^ = sign(W)            inputs   x^ = sign(x)
backward  by the estimator; the latent weight is clipped to [-clip, clip] after each step

With `stochastic`, a training step draws W^ = +1 with probability clip((W + 1) / 2, 0, 1), the gradient unchanged.
BinaryConnect's authors then evaluate with W itself, which saves nothing; here evaluation takes the sign.
"""

from typing import ClassVar

import torch
from torch import Tensor

from bnnconvert.binarizers.base import Encoder, InputBinarizer, LatentClip, Plane, WeightBinarizer, sign_encoder
from bnnconvert.estimators.base import Estimator, sign_pm1


class SignWeight(WeightBinarizer):
    """Sign of the latent weight."""

    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def __init__(self, *, estimator: Estimator, clip: LatentClip | None = 1.0, stochastic: bool = False) -> None:
        super().__init__()
        self.estimator = estimator
        self.clip = clip
        self.stochastic = stochastic

    def planes(self, weight: Tensor) -> list[Plane]:
        pm1 = self.estimator(weight)
        if self.stochastic and self.training:
            drawn = sign_pm1(weight.detach() - torch.empty_like(weight).uniform_(-1, 1))
            pm1 = pm1 + (drawn - pm1).detach()
        return [Plane(pm1)]


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

    def one(self) -> float:
        return 1.0  # as a number: one read from a tensor would cut a compiled step in two
