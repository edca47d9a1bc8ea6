"""TSQ's sparse quantizer: a half-wave Gaussian quantizer that is 0 up to a threshold above 0.

    x^ = 0 for x <= e, and d ceil(x / d - 1/2) in d .. (2^k - 1) d above;   Phi(e) = sparsity
    d  = argmin E[(x^ - x)^2 | x > e], x normal         two bits: e = 0.32, d = 0.648 at a sparsity of 0.625

backward  g_x = g 1{0 < x <= (2^k - 1) d}, as HWGQ has it

A sparsity of one half is HWGQ. The input must be normal, as there. Weights are ternary.
"""

from statistics import NormalDist
from typing import Annotated, ClassVar

from pydantic import Field

from bnnconvert.binarizers.codes import Bits
from bnnconvert.binarizers.half_wave import HalfWaveInput


class TsqInput(HalfWaveInput):
    """Sparse quantizer; `sparsity` is the share of zeros that it gives for a normal input."""

    source: ClassVar[str] = "Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018"

    def __init__(
        self, channels: int, *, bits: Bits = 2, sparsity: Annotated[float, Field(ge=0.5, lt=1)] = 0.625
    ) -> None:
        super().__init__(channels, bits=bits, epsilon=NormalDist().inv_cdf(sparsity))
