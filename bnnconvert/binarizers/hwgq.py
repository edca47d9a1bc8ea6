"""HWGQ: activations on the levels that fit a half-wave Gaussian best, the same for every layer.

    x^ = d ceil(x / d - 1/2) up to (2^k - 1) d, at least d for x > 0, and 0 for x <= 0
    d  = 0.7979, 0.5388, 0.3217, 0.1842, ... for k = 1, 2, 3, 4, ... bits (`half_wave.best_step`; paper: 0.538)

backward  g_x = g 1{0 < x <= (2^k - 1) d}, the derivative of the clipped ReLU

The input must be normal with mean 0 and deviation 1: a batch norm without scale and shift belongs in front
(rewrite `insert-batch-norm` with `affine = false`). Weights are the sign times the mean magnitude of each filter.
"""

from typing import ClassVar

from bnnconvert.binarizers.codes import Bits
from bnnconvert.binarizers.half_wave import HalfWaveInput


class HwgqInput(HalfWaveInput):
    """Half-wave Gaussian quantizer."""

    source: ClassVar[str] = "Cai et al., HWGQ, CVPR 2017, arXiv:1702.00953"

    def __init__(self, channels: int, *, bits: Bits = 2) -> None:
        super().__init__(channels, bits=bits, epsilon=0.0)
