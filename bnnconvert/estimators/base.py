"""What an estimator is: sign forward, a surrogate derivative backward.

forward   sign(x) = +1 if x >= 0 else -1
backward  g_x = gradient(x, g)

With a shift b per channel both see x + b; the sign compares x with -b, which is the same in floating point as well.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.channels import channel_sums, wide


def sign_pm1(x: Tensor, threshold: Tensor | float = 0) -> Tensor:
    """+1 where x >= threshold and -1 elsewhere, NaN included, as a tensor of x's type and layout."""
    if torch.compiler.is_compiling():
        return (x >= threshold).to(x.dtype) * 2 - 1
    # A comparison written straight into floats, then 2y - 1 in one sweep: far faster on a CPU than torch.where.
    bits = torch.ge(x, threshold, out=torch.empty_like(x))
    return torch.add(x.new_tensor(-1.0), bits, alpha=2, out=bits)


class Estimator(nn.Module, ABC):
    """A surrogate gradient for sign. Whatever a schedule changes is a buffer, so it is saved and moves along."""

    source: ClassVar[str]

    @abstractmethod
    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Gradient with respect to x, given the gradient with respect to sign(x). Shapes: all alike."""

    def advance(self, progress: float) -> None:
        """Move a schedule to `progress`, the share of the run that is done, in [0, 1]."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Sign of x, or of x plus a shift per channel, as ±1 with this estimator's gradient.

        Shapes: x (N, C, ...), shift (C,).
        """
        return _SignThrough.apply(x, shift, self)  # type: ignore[no-any-return, no-untyped-call]


class _SignThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, estimator: Estimator) -> Tensor:
        ctx.save_for_backward(x, shift)
        ctx.estimator = estimator
        return sign_pm1(x) if shift is None else sign_pm1(x, -wide(shift, x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, shift = ctx.saved_tensors
        if shift is None:
            return ctx.estimator.gradient(x, grad), None, None
        grad_x = ctx.estimator.gradient(x + wide(shift, x), grad)
        return grad_x, channel_sums(grad_x), None
