"""Uniform levels that fit a half-wave Gaussian: what is left of a normalised activation above a threshold e >= 0.

    Q(x) = 0 for x <= e,  else i d for x in ((i - 1/2) d, (i + 1/2) d],  i = 1 .. n = 2^k - 1
           the first interval begins at e, the last has no end: every x above e gives at least d

    d = argmin E[(Q(x) - x)^2 | x > e],  x normal
      = sum_i i (phi(a_i) - phi(b_i)) / sum_i i^2 (Phi(b_i) - Phi(a_i))    (Lloyd: a, b from d)

backward  g_x = g 1{0 < x <= n d}, the derivative of the clipped ReLU
"""

from functools import lru_cache

import torch
from torch import Tensor

from bnnconvert.binarizers.codes import UniformInput, just_above

_LEAST = 1e-30
"""What counts as above 0: a threshold that no hardware flushes to zero, and no activation lies below."""


class HalfWaveInput(UniformInput):
    """Fixed levels for a standard normal input, 0 up to `epsilon`."""

    def __init__(self, channels: int, *, bits: int, epsilon: float) -> None:
        super().__init__(channels, bits=bits)
        self.passes = (0.0, just_above(self.top))
        self.distance = best_step(self.top, epsilon)
        self.first = max(epsilon / self.distance, _LEAST)

    def scaled(self, x: Tensor) -> Tensor:
        return x * (1 / self.distance)

    def step(self) -> float:
        return self.distance

    def rounded(self, u: Tensor) -> Tensor:
        above = (u > self.first) if torch.compiler.is_compiling() else torch.gt(u, self.first, out=torch.empty_like(u))
        return (u - 0.5).ceil_().clamp_(1, self.top).mul_(above)


@lru_cache(maxsize=64)
def best_step(levels: int, epsilon: float = 0.0) -> float:
    """Distance of `levels` uniform levels with the least squared error on a standard normal above epsilon."""
    number = torch.arange(1, levels + 1, dtype=torch.float64)

    def refined(step: float) -> float:
        lower = ((number - 0.5) * step).clamp(min=epsilon)
        lower[0] = epsilon
        upper = torch.cat([lower[1:], lower.new_tensor([torch.inf])])
        mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
        moment = ((lower.square() / -2).exp() - (upper.square() / -2).exp()) / (2 * torch.pi) ** 0.5
        return float((number * moment).sum() / (number.square() * mass).sum())

    low, high = 0.0, epsilon + 2.0  # refining enlarges steps that are too small and shrinks those too large
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if refined(middle) > middle else (low, middle)
    return high
