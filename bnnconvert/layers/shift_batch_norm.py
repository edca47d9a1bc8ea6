"""Shift-based batch norm of BNN: every product is one with a power of two.

AP2(z) = sign(z) 2^round(log2|z|)                  the power of two nearest to z in ratio; AP2(0) = 0
C = x - mean x,   v = mean(C AP2(C)),   y = C AP2(1 / sqrt(v + eps)) AP2(gamma) + beta
in evaluation mode, with running mean m and v:   y = s x + (beta - s m),   s = AP2(1 / sqrt(v + eps)) AP2(gamma)

backward: AP2 passes the gradient unchanged, as its slope is 1 on average.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.channels import channel_sums, wide
from bnnconvert.layers.deployable import Deployable

_SOURCE = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"
_EXPONENT, _ABOVE_SQRT_2 = -(1 << 23), 0x3504F4
"""Bits of sign and exponent of a float32; the smallest mantissa above that of the square root of 2."""


def ap2(z: Tensor) -> Tensor:
    """Power of two nearest to z in ratio, with z's sign, exactly; gradients pass unchanged. z is float32."""
    return _Ap2.apply(z)  # type: ignore[no-any-return, no-untyped-call]


class _Ap2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        # From sqrt(2) on a mantissa carries into the exponent; then the mantissa is cut off.
        bits = z.view(torch.int32) + ((1 << 23) - _ABOVE_SQRT_2)
        return bits.bitwise_and_(_EXPONENT).view(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class ChannelAffine(nn.Module):
    """One fixed affine map per channel. Shapes: x (N, C, ...), scale and bias (C,)."""

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale, then add."""
        return x * wide(self.scale, x) + wide(self.bias, x)


class _ShiftBatchNorm(nn.modules.batchnorm._BatchNorm, Deployable):
    """What both ranks share. Shapes: x (N, C, ...), y the same."""

    source: ClassVar[str] = _SOURCE

    @classmethod
    def from_float(cls, norm: nn.modules.batchnorm._BatchNorm) -> "_ShiftBatchNorm":
        """The shift-based twin of a batch norm, sharing its parameters and statistics."""
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine)
        twin.weight, twin.bias = norm.weight, norm.bias
        twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
        twin.num_batches_tracked = norm.num_batches_tracked
        return twin.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input."""
        if not self.training:
            scale, bias = self._affine()
            return input * wide(scale, input) + wide(bias, input)
        x = input.float()
        count = x.numel() // x.shape[1]
        mean = channel_sums(x) / count
        centred = x - wide(mean, x)
        var = channel_sums(centred * ap2(centred)) / count
        self._track(mean.detach(), var.detach())
        y = centred * wide(self._scale(var), x)
        return y if self.bias is None else y + wide(self.bias, x)

    def deployed(self) -> ChannelAffine:
        return ChannelAffine(*(t.detach() for t in self._affine()))

    def _scale(self, var: Tensor) -> Tensor:
        scale = ap2(torch.rsqrt(var + self.eps))
        return scale if self.weight is None else scale * ap2(self.weight)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Scale and bias that evaluation mode comes to."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self._scale(self.running_var)
        offset = scale * self.running_mean
        return scale, -offset if self.bias is None else self.bias - offset

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        pace = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, pace)
        self.running_var.lerp_(var, pace)


class ShiftBatchNorm1d(_ShiftBatchNorm, nn.BatchNorm1d):
    """Of features, (N, C) or (N, C, L)."""


class ShiftBatchNorm2d(_ShiftBatchNorm, nn.BatchNorm2d):
    """Of images, (N, C, H, W)."""
