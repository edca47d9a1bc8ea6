"""The K map of XNOR-Net: the mean magnitude of what each position of the kernel sees, instead of one scale for all.

A = mean_c |x|,   K = A (*) k,   k = ones(kh, kw) / (kh kw),   y = K y'        (*) with the layer's own geometry

The divisor counts the padding. Each group of a grouped convolution has a K of its own; a linear layer's is mean|x| of
the row. Backward: g_y' = K g; K passes a gradient to x as well, which public code leaves out (`detach`).
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.gains.base import Gain, GainSite, Operand


class KMap(Gain):
    """Mean magnitude of the input under the kernel."""

    source: ClassVar[str] = "Rastegari et al., XNOR-Net, ECCV 2016, arXiv:1603.05279"
    stands_for: ClassVar[Operand | None] = "inputs"
    mean: Tensor
    box: Tensor

    def __init__(self, *, site: GainSite, detach: bool = False) -> None:
        super().__init__(site=site)
        self.detach = detach
        per_group = site.inputs // site.groups
        self.register_buffer("mean", torch.full((site.groups, per_group, *(1,) * len(site.kernel)), 1 / per_group))
        if site.kernel:
            # With groups the map is made for every output channel, as it does not broadcast over them.
            maps = site.outputs if site.groups > 1 else 1
            taps = site.kernel[0] * site.kernel[1]
            self.register_buffer("box", torch.full((maps, 1, *site.kernel), 1 / taps))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y * self.factor(x.detach() if self.detach else x)

    def factor(self, x: Tensor) -> Tensor:
        """K. Shapes: (N, C, H, W) -> (N, 1 or O, H', W'), (N, I) -> (N, 1)."""
        site = self.site
        if not site.kernel:
            return F.linear(x.abs(), self.mean)
        # Convolutions with constant filters: the engine has kernels for them, and they know stride and dilation.
        mean = F.conv2d(x.abs(), self.mean, groups=site.groups)
        return F.conv2d(mean, self.box, None, site.stride, site.padding, site.dilation, site.groups)
