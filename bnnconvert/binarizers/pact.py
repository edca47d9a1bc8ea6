"""PACT: activations clipped at a learned level, then quantized uniformly.

    y  = (|x| - |x - a| + a) / 2 = clip(x, 0, a)          one a per layer
    x^ = round(y n / a) a / n,   n = 2^k - 1,  ties to even

backward  g_x = g 1{0 <= x < a}        g_a = sum of g over x >= a

The loss `clip-level` adds the paper's penalty on a. Weights are DoReFa's.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from bnnconvert.binarizers.codes import TINY, Bits, UniformInput, least_squares_clip

FLOOR = 1e-3
"""Below it a clip level is held: at zero the layer would be dead, and below zero senseless."""


class PactInput(UniformInput):
    """k-bit activations in [0, a]; with `fit`, a starts where the squared error on data is least.

    The paper starts at 10 and from scratch. In a trained network two bits of [0, 10] leave hardly a value above 0.
    """

    source: ClassVar[str] = "Choi et al., PACT, 2018, arXiv:1805.06085"

    def __init__(
        self,
        channels: int,
        *,
        bits: Bits = 2,
        clip: Annotated[float, Field(gt=0)] = 10.0,
        fit: bool = True,
    ) -> None:
        super().__init__(channels, bits=bits)
        self.passes = (-TINY, float(self.top))
        self.fit = fit
        self.clip = nn.Parameter(torch.tensor(float(clip)))

    def level(self) -> Tensor:
        """Clip level as used. Shapes: ()."""
        return self.clip.detach().clamp(min=FLOOR)

    def scaled(self, x: Tensor) -> Tensor:
        return x * (self.top / self.level())

    def step(self) -> Tensor:
        return self.level() / self.top

    def relaxed(self, x: Tensor) -> Tensor:
        return torch.minimum(relu(x), self.clip)

    def forward(self, x: Tensor) -> Tensor:
        return self.staircase(x, self.clip)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.fit:
            level = least_squares_clip(x.relu(), self._quantized)
            self.clip.copy_(self.clip if level is None else level)

    def _quantized(self, y: Tensor, level: Tensor) -> Tensor:
        return (y * (self.top / level)).clamp(0, self.top).round() * (level / self.top)
