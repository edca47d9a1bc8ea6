"""Libra-PB of IR-Net: balanced and standardised weights with a power-of-two scale.

W'   = (W - mean W) / std W       per filter, unbiased std, both inside the gradient
W^_o = s_o sign(W'_o),   s_o = 2^round(log2 mean|W'_o|), a constant
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.estimators.base import Estimator


class LibraWeight(WeightBinarizer):
    """Sign of the standardised latent weight times a shift."""

    source: ClassVar[str] = "Qin et al., IR-Net, CVPR 2020, arXiv:1909.10788"

    def __init__(self, *, estimator: Estimator, epsilon: Annotated[float, Field(gt=0)] = 1e-12) -> None:
        super().__init__()
        self.estimator = estimator
        self.epsilon = epsilon

    def planes(self, weight: Tensor) -> list[Plane]:
        rows = weight.flatten(1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        # One weight per filter has no deviation: the unbiased estimate would be NaN.
        deviation = centred.std(dim=1, keepdim=True, correction=min(1, rows.shape[1] - 1))
        standard = centred / deviation.clamp(min=self.epsilon)
        mean = standard.detach().abs().mean(dim=1)
        scale = torch.exp2(mean.clamp(min=self.epsilon).log2().round())
        return [Plane(self.estimator(standard.reshape(weight.shape)), scale)]
