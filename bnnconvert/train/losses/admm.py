"""The quadratic term of ADMM, from the float weights of a stage to their binary targets.

L = sum over layers of  ||W - G + lambda||^2 / 2        the loss's weight is rho; G and lambda belong to `admm` weights
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.admm import AdmmWeight
from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.latent import binary_layers
from bnnconvert.train.losses.base import Loss, Outputs


class Admm(Loss):
    """Squared distance of float weights from their targets; nothing for weights that are binary."""

    source: ClassVar[str] = "Leng et al., Extremely Low Bit Neural Network, AAAI 2018, arXiv:1707.09870"
    needs_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self.layers: list[BinaryLayer] = []

    def bind(self, student: nn.Module) -> None:
        self.layers = [layer for _, layer in binary_layers(student) if isinstance(layer.weight_binarizer, AdmmWeight)]
        if not self.layers:
            raise UsageError("training.losses: 'admm' is about weights of that name, and there are none; leave it out.")

    def close(self) -> None:
        self.layers.clear()

    def __call__(self, outputs: Outputs) -> Tensor:
        terms = []
        for layer in self.layers:
            assert isinstance(layer.weight_binarizer, AdmmWeight)
            if not layer.weights_are_binary:
                terms.append(layer.weight_binarizer.penalty(layer.weight))
        return torch.stack(terms).sum() if terms else outputs.logits.new_zeros(())
