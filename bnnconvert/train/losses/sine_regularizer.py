"""BiPer's term on the sine of the weights, in either direction.

    zeros    L = sum over layers of  mean sin(w W)^2  = mean (1 - cos(2 w W)) / 2
    crests   L = sum over layers of  mean cos(w W)^2  = mean (1 + cos(2 w W)) / 2

The authors' code for CIFAR adds the first to the loss, with a weight of 0.037 in its first stage and 0.0468 in its
second; their ImageNet script leaves it out. It pulls the weights to the zeros of the sine, where the bits turn, and so
away from ±1. The second pulls them to the crests, where sine and square wave agree. The recipe `biper` uses neither; a
recipe that wants one has to say which.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.biper import BiperWeight
from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses.base import Loss, Outputs


class SineRegularizer(Loss):
    """Mean square of the sine of the weights, or of its distance from ±1, per layer."""

    source: ClassVar[str] = "Vargas et al., BiPer, CVPR 2024, arXiv:2404.01278"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, *, towards: Literal["zeros", "crests"]) -> None:
        self.towards = towards
        self.layers: list[tuple[BinaryLayer, BiperWeight]] = []

    def bind(self, student: nn.Module) -> None:
        found = [(m, m.weight_binarizer) for m in student.modules() if isinstance(m, BinaryLayer)]
        self.layers = [(layer, b) for layer, b in found if isinstance(b, BiperWeight)]
        if not self.layers:
            raise UsageError(
                "training.losses: 'sine-regularizer' is about weights of 'biper', and no layer has them; "
                "choose that weight binarizer or leave the loss out."
            )

    def __call__(self, outputs: Outputs) -> Tensor:
        zeros = torch.stack([binarizer.wave(layer.weight).square().mean() for layer, binarizer in self.layers])
        return (zeros if self.towards == "zeros" else 1 - zeros).sum()
