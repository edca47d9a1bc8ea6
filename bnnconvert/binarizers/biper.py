"""BiPer: weights through a square wave, trained as the sine of the same period.

stage 1   W^ = |a_o| sin(w W)            real weights, binary inputs: what a stage without binary weights runs
stage 2   W^ = |a_o| sign(sin(w W))      a_o learned, starts at mean|W_o|

backward, in both stages: g_W = |a_o| w cos(w W) g: the sine's own derivative, sign passing it unchanged

The bit is the sign of the sine, not that of W: at w = 20, 0.1 is +1 and 0.2 is -1. The paper trains from scratch with
w = 20. Without a `frequency` each layer takes, when it is converted, w = pi / (4 rms W): a pretrained weight of two
deviations stands at the sine's crest, and all within four keep their sign.
"""

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.estimators.identity import Identity


class BiperWeight(WeightBinarizer):
    """Sign of the sine of the latent weight times a learned positive scale."""

    source: ClassVar[str] = "Vargas et al., BiPer, CVPR 2024, arXiv:2404.01278"
    frequency: Tensor

    def __init__(self, shape: tuple[int, ...], *, frequency: Annotated[float, Field(gt=0)] | None = None) -> None:
        super().__init__()
        self.through = Identity()
        self.register_buffer("frequency", torch.tensor(math.nan if frequency is None else frequency))
        self.scale = nn.Parameter(torch.ones(shape[0]))

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.through(self.wave(weight)), self.scale.abs())]

    def relaxed(self, weight: Tensor) -> Tensor:
        return self.wave(weight) * per_output(self.scale.abs(), weight.dim())

    def wave(self, weight: Tensor) -> Tensor:
        """The sine whose sign is the bit."""
        return torch.sin(weight * self.frequency)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        if self.frequency.isnan():  # once: trained weights belong to their frequency
            self.frequency.copy_(math.pi / 4 / weight.square().mean().sqrt().clamp(min=1e-12))
        self.scale.copy_(weight.abs().flatten(1).mean(dim=1))
