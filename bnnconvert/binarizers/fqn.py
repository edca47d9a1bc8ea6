"""FQN: asymmetric k-bit weights per output channel and activations per layer, each with a zero point.

    step = (high - low) / n,   n = 2^k - 1,   z = round(-low / step)          low <= 0 <= high, so 0 <= z <= n
    x^   = step (round(clip(x / step + z, 0, n)) - z)                         0 maps to 0 exactly

weights   low and high are the least and the largest weight of the output channel
inputs    low and high are the quantiles 1 - q and q of a batch, averaged over the first batches of training as IAO has
          it (a running mean), then fixed; outliers beyond them are clipped

backward  g_x = g 1{0 <= x / step + z <= n}, with the range as a constant
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.binarizers.codes import Bits, UniformInput, bit_planes, pass_gradient, sampled, uniform_scales

_SOURCE = "Li et al., Fully Quantized Network for Object Detection, CVPR 2019; ranges as IAO, arXiv:1712.05877"
BATCHES, PACE = 20, 0.1
"""Batches that set an activation's range, and the weight of each in the running mean."""
_LEAST = 1e-12


def grid(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Step and zero point of a range. Shapes: all alike."""
    step = ((high - low) / top).clamp(min=_LEAST)
    return step, (-low / step).round()


class FqnWeight(WeightBinarizer):
    """Asymmetric uniform weights per output channel."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, *, bits: Bits = 4) -> None:
        super().__init__()
        self.bits = bits
        self.top: int = 2**bits - 1
        self.plane_count = bits + 1

    def planes(self, weight: Tensor) -> list[Plane]:
        weight = weight.detach()
        step, zero = self._grid(weight)
        parts = bit_planes(self._scaled(weight, step, zero).clamp_(0, self.top).round_(), self.bits)
        scales = uniform_scales(step, self.bits, -zero * step)
        return [Plane(*both) for both in zip([*parts, torch.ones_like(weight)], scales, strict=True)]

    def forward(self, weight: Tensor) -> Tensor:
        step, zero = self._grid(weight.detach())
        inside = self._scaled(weight, step, zero).clamp(0, self.top)
        code = pass_gradient(inside, inside.detach().round())
        return (code - per_output(zero, weight.dim())) * per_output(step, weight.dim())

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = weight.flatten(1)
        return grid(rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0), self.top)

    def _scaled(self, weight: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        return weight / per_output(step, weight.dim()) + per_output(zero, weight.dim())


class FqnInput(UniformInput):
    """Asymmetric uniform activations per layer; `quantile` is the share of values below the upper end of the range."""

    source: ClassVar[str] = _SOURCE
    bounds: Tensor
    seen: Tensor

    def __init__(
        self, channels: int, *, bits: Bits = 4, quantile: Annotated[float, Field(gt=0.5, le=1)] = 0.999
    ) -> None:
        super().__init__(channels, bits=bits)
        self.quantile = quantile
        self.register_buffer("bounds", torch.tensor([-1.0, 1.0]))
        self.register_buffer("seen", torch.tensor(0))
        self._is_settled = False

    def scaled(self, x: Tensor) -> Tensor:
        step, zero = self._grid()
        return x.mul(1 / step).add_(zero)

    def step(self) -> Tensor:
        return self._grid()[0]

    def low(self) -> Tensor:
        step, zero = self._grid()
        return -zero * step

    def relaxed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self._is_settled:
            self._follow(x)
        return self.staircase(x)

    def advance(self, progress: float) -> None:
        self._is_settled = int(self.seen) >= BATCHES

    def calibrate(self, x: Tensor) -> None:
        self.seen.zero_()
        self._is_settled = False
        self._follow(x)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        values = sampled(x)  # and no number is read from a tensor, at which a compiled step would come apart
        last = len(values) - 1
        low = values.kthvalue(1 + round((1 - self.quantile) * last)).values.clamp(max=0)
        high = values.kthvalue(1 + round(self.quantile * last)).values.clamp(min=0)
        pace = torch.where(self.seen == 0, 1.0, PACE) * (self.seen < BATCHES)
        self.bounds.lerp_(torch.stack([low, high]), pace)
        self.seen += 1

    def _grid(self) -> tuple[Tensor, Tensor]:
        low, high = self.bounds
        return grid(low, high, self.top)
