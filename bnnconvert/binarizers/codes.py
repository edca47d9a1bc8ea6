"""What k-bit quantizers share: a value has a code in k bits, and the code's bits are planes.

    code(x) in 0 .. n,  n = 2^k - 1,  non-decreasing in x         bit_j in {0, 1} is (s_j + 1) / 2
    x^ = low + step code(x)
       = sum_j 2^(j-1) step s_j + (low + n step / 2)              the last is a plane that is +1 everywhere

backward, straight through the rounding of u, the x that is scaled so that its codes are 0 .. n:
    g_x = g 1{u in the open interval `passes`}                    g_clip = g summed over u >= n, if the clip is learned

In training nobody needs the planes, and x^ comes from the code itself, in as many sweeps as a sign with its mask.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import hardtanh

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane

Bits = Annotated[int, Field(ge=1, le=8)]
TINY = torch.finfo(torch.float32).tiny
"""Smallest number that no hardware flushes to zero: `x > 0` is `x >= TINY`, and `u >= 0` is `u > -TINY`."""
SHARES = [i / 50 for i in range(1, 51)]
"""Clip levels to try, as shares of the largest magnitude."""
LOOK_AT = 2**16
"""Elements that the search for a range looks at."""
_INFINITY = 0x7F800000


class CodedInput(InputBinarizer):
    """An input whose planes are the bits of a code, the lowest first; one plane more is +1 everywhere.

    Planes carry no gradient: training takes `forward`, which gives the same values.
    """

    def __init__(self, channels: int, *, bits: int) -> None:
        super().__init__(channels)
        self.bits = bits
        self.top: int = 2**bits - 1

    @abstractmethod
    def code(self, x: Tensor) -> Tensor:
        """Code of each value as a float, non-decreasing in x; what NaN gives counts as 0."""

    @abstractmethod
    def scales(self) -> Tensor:
        """Scale of each bit, the lowest first, and of the constant plane if there is one. Shapes: (P,)."""

    @torch.no_grad()
    def planes(self, x: Tensor) -> list[Plane]:
        scales = self.scales()
        parts = bit_planes(self.code(x), self.bits)
        if len(scales) > self.bits:
            parts.append(torch.ones_like(x))
        return [Plane(pm1, scale) for pm1, scale in zip(parts, scales, strict=True)]

    @torch.no_grad()
    def encoder(self) -> Encoder:
        scales = self.scales().float()
        reached = first_reaching(self.code, self.top, device=scales.device)
        thresholds = scales.new_full((len(scales), 1, self.top), torch.inf)
        for j in range(self.bits):  # bit j toggles at every 2^j levels
            at = reached[2**j - 1 :: 2**j]
            thresholds[j, 0, : len(at)] = at
        start = torch.zeros(len(scales), 1, dtype=torch.bool, device=scales.device)
        start[self.bits :] = True
        return Encoder(thresholds, start, scales)


class UniformInput(CodedInput):
    """A code with equal steps: x^ = low + step code."""

    passes: tuple[float, float]

    def __init__(self, channels: int, *, bits: int) -> None:
        super().__init__(channels, bits=bits)
        self.passes = (-TINY, just_above(self.top))
        self.below_top = -just_above(-self.top)

    @abstractmethod
    def scaled(self, x: Tensor) -> Tensor:
        """Input on the scale of the codes, as a new tensor."""

    @abstractmethod
    def step(self) -> Tensor | float:
        """Distance of two levels. Shapes: ()."""

    def low(self) -> Tensor | None:
        """Level of code 0; None for 0. Shapes: ()."""
        return None

    def rounded(self, u: Tensor) -> Tensor:
        """Codes of scaled values, as a new tensor."""
        return u.clamp(0, self.top).round_()

    def code(self, x: Tensor) -> Tensor:
        return self.rounded(self.scaled(x))

    def scales(self) -> Tensor:
        return torch.stack(uniform_scales(torch.as_tensor(self.step()), self.bits, self.low()))

    def clip_range(self) -> tuple[float, float] | None:
        return (0.0, self.top * float(self.step())) if self.low() is None else None

    def relaxed(self, x: Tensor) -> Tensor:
        assert self.low() is None
        return hardtanh(x, 0.0, self.top * float(self.step()))

    def forward(self, x: Tensor) -> Tensor:
        return self.staircase(x)

    def staircase(self, x: Tensor, clip: Tensor | None = None) -> Tensor:
        """Quantized values; a learned clip level takes the gradient of the values at or above it."""
        return _Staircase.apply(x, clip, self)  # type: ignore[no-any-return, no-untyped-call]


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor | None, binarizer: UniformInput) -> Tensor:
        u = binarizer.scaled(x)
        ctx.save_for_backward(u, clip)
        ctx.passes, ctx.below_top = binarizer.passes, binarizer.below_top
        y, low = binarizer.rounded(u).mul_(binarizer.step()), binarizer.low()
        return y if low is None else y.add_(low)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        u, clip = ctx.saved_tensors
        grad_x = torch.ops.aten.hardtanh_backward(grad, u, *ctx.passes)
        if clip is None:
            return grad_x, None, None
        above = torch.ops.aten.threshold_backward(grad, u, ctx.below_top)  # u >= top is u > the float below it
        return grad_x, above.sum(dtype=clip.dtype), None


def bit_planes(code: Tensor, bits: int) -> list[Tensor]:
    """±1 tensors of the bits of a code, the lowest first."""
    whole = code.nan_to_num(nan=0.0).to(torch.uint8)
    return [(whole >> j).bitwise_and_(1).to(code.dtype).mul_(2).sub_(1) for j in range(bits)]


def uniform_scales(step: Tensor, bits: int, low: Tensor | None) -> list[Tensor]:
    """Scales of the bits, the lowest first, and of the constant plane. Shapes: those of step."""
    middle = step * ((2**bits - 1) / 2)
    return [*(step * 2.0 ** (j - 1) for j in range(bits)), middle if low is None else middle + low]


def just_above(value: float) -> float:
    """The next float32."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(torch.inf)))


def first_reaching(code: Callable[[Tensor], Tensor], top: int, *, device: torch.device) -> Tensor:
    """Smallest float32 at which a non-decreasing code reaches 1 .. top; +inf where it never does.

    By bisection over the floats in their order: exact, whatever the code's rounding. Shapes: (top,).
    """
    levels = torch.arange(1, top + 1, device=device)
    below, reached = torch.full_like(levels, -_INFINITY), torch.full_like(levels, _INFINITY)
    while (reached - below).max() > 1:
        middle = (below + reached).div(2, rounding_mode="floor")
        hit = code(_nth_float(middle)) >= levels
        reached, below = torch.where(hit, middle, reached), torch.where(hit, below, middle)
    return _nth_float(reached)


def _nth_float(order: Tensor) -> Tensor:
    """Float32 of a place in the order of all floats, 0 for 0.0."""
    bits = torch.where(order < 0, order.abs() - 2**31, order)
    return bits.to(torch.int32).view(torch.float32)


def sampled(x: Tensor) -> Tensor:
    """Up to LOOK_AT values of x, evenly spread; an odd stride meets every column of an image. Shapes: (n,) float32."""
    flat = x.detach().flatten()
    return flat[:: -(-len(flat) // LOOK_AT) | 1].float()


def least_squares_clip(values: Tensor, quantize: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    """Clip level c with the least squared error of quantize(values, c); None if all values are 0.

    Shapes: values any, c ().
    """
    sample = sampled(values)
    largest = sample.abs().max()
    if not 0 < float(largest) < torch.inf:
        return None
    levels = [largest * share for share in SHARES]
    errors = torch.stack([(quantize(sample, level) - sample).square().sum() for level in levels])
    return levels[int(errors.argmin())]


class _GradientPassed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def pass_gradient(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of x."""
    return _GradientPassed.apply(x, value)  # type: ignore[no-any-return, no-untyped-call]
