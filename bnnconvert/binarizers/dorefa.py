"""DoReFa-Net: k-bit weights and activations on fixed ranges.

    quantize(r) = round(n r) / n,  r in [0, 1],  n = 2^k - 1,  ties to even

weights   k = 1   W^ = E sign(W),   E = mean|W| of the whole layer             g_W = g
          k > 1   W^ = 2 quantize(r) - 1,   r = tanh(W) / (2 max|tanh W|) + 1/2, the maximum over the layer
                  g_W through tanh and maximum; rounding passes the gradient
inputs    x^ = quantize(clip(x, 0, 1))                                         g_x = g 1{0 <= x <= 1}

The gradients that the paper quantizes too, to save work in training, stay float here.
"""

from typing import ClassVar

from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.binarizers.codes import Bits, UniformInput, bit_planes, pass_gradient
from bnnconvert.estimators.base import sign_pm1

_SOURCE = "Zhou et al., DoReFa-Net, 2016, arXiv:1606.06160"


class DorefaWeight(WeightBinarizer):
    """k-bit weights in [-1, 1], or the sign times one scale for the layer."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, *, bits: Bits = 1) -> None:
        super().__init__()
        self.plane_count = self.bits = bits
        self.top: int = 2**bits - 1

    def planes(self, weight: Tensor) -> list[Plane]:
        outputs = len(weight)
        if self.bits == 1:
            return [Plane(sign_pm1(weight.detach()), weight.detach().abs().mean().expand(outputs))]
        code = (self._unit(weight.detach()) * self.top).round_()
        # 2 code / n - 1 = sum_j (2^j / n) s_j: the bits of n are all ones, so no offset is left.
        scales = [weight.new_full((outputs,), 2**j / self.top) for j in range(self.bits)]
        return [Plane(*both) for both in zip(bit_planes(code, self.bits), scales, strict=True)]

    def relaxed(self, weight: Tensor) -> Tensor:
        return weight if self.bits == 1 else self._unit(weight) * 2 - 1

    def forward(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            latent = weight.detach()
            return pass_gradient(weight, sign_pm1(latent).mul_(latent.abs().mean()))
        unit = self._unit(weight)
        return pass_gradient(unit, (unit.detach() * self.top).round_().div_(self.top)) * 2 - 1

    def _unit(self, weight: Tensor) -> Tensor:
        bounded = weight.tanh()
        return bounded / (2 * bounded.abs().max()).clamp(min=1e-12) + 0.5


class DorefaInput(UniformInput):
    """k-bit activations in [0, 1]."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, channels: int, *, bits: Bits = 2) -> None:
        super().__init__(channels, bits=bits)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.top

    def step(self) -> float:
        return 1 / self.top
