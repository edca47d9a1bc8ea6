"""WRPN: k-bit weights in [-s, s] with a zero, k-bit activations in [0, 1].

weights   k = 1   W^_o = mean|W_o| sign(W_o)                                    g_W = g mean|W_o|
          k > 1   W^ = s round(m clip(W / s, -1, 1)) / m,   m = 2^(k-1) - 1     g_W = g 1{|W| <= s}
inputs    x^ = round(n clip(x, 0, 1)) / n,   n = 2^k - 1                        g_x = g 1{0 <= x <= 1}

Ties go to even. The paper trains wide networks from scratch with s = 1. A trained layer's weights are far smaller than
1, and at two bits all would round to 0, so s is set where the squared error is least when the layer becomes binary.

Sign and magnitude as planes: with c = round(m W / s), the highest bit is c >= 0, the lower ones are those of c, or of
c + m below zero, and c = (m / 2) s_k-1 + sum_{j < k-1} 2^(j-1) s_j needs no offset.
"""

from typing import ClassVar

import torch
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer, per_output
from bnnconvert.binarizers.codes import Bits, bit_planes, least_squares_clip, pass_gradient
from bnnconvert.binarizers.dorefa import DorefaInput
from bnnconvert.estimators.base import sign_pm1

_SOURCE = "Mishra et al., WRPN, ICLR 2018, arXiv:1709.01134"


class WrpnWeight(WeightBinarizer):
    """Symmetric k-bit weights; with `fit`, their range is set from the latent weight, else it is [-1, 1]."""

    source: ClassVar[str] = _SOURCE
    bound: Tensor

    def __init__(self, *, bits: Bits = 2, fit: bool = True) -> None:
        super().__init__()
        self.plane_count = self.bits = bits
        self.fit = fit
        self.top: int = 2 ** (bits - 1) - 1
        self.register_buffer("bound", torch.tensor(1.0))

    def planes(self, weight: Tensor) -> list[Plane]:
        weight = weight.detach()
        if self.bits == 1:
            return [Plane(sign_pm1(weight), weight.abs().flatten(1).mean(dim=1))]
        code = self._code(weight / self.bound)
        sign = sign_pm1(code)
        parts = [*bit_planes(torch.where(code < 0, code + self.top, code), self.bits - 1), sign]
        step = (self.bound / self.top).expand(len(weight))
        scales = [*(step * 2.0 ** (j - 1) for j in range(self.bits - 1)), step * (self.top / 2)]
        return [Plane(*both) for both in zip(parts, scales, strict=True)]

    def forward(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            scale = per_output(weight.detach().abs().flatten(1).mean(dim=1), weight.dim())
            return pass_gradient(weight, sign_pm1(weight.detach())) * scale
        scaled = weight / self.bound
        return pass_gradient(scaled.clamp(-1, 1), self._code(scaled.detach()).div_(self.top)) * self.bound

    def calibrate(self, weight: Tensor) -> None:
        if self.fit and self.bits > 1:
            found = least_squares_clip(weight, lambda w, s: self._code(w / s) * (s / self.top))
            self.bound.copy_(self.bound if found is None else found)

    def _code(self, scaled: Tensor) -> Tensor:
        return scaled.clamp(-1, 1).mul_(self.top).round_()


class WrpnInput(DorefaInput):
    """k-bit activations in [0, 1]: DoReFa's."""

    source: ClassVar[str] = _SOURCE
