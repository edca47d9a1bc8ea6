"""The data-driven channel gate of Real-to-Binary: what the sign throws away says how much each channel counts.

s = mean_hw x,   G = sigmoid(W2 relu(W1 s)),   y = G y'        W1: C -> C / reduction,  W2: -> O, no bias

x is the float input before the sign. W2 starts at 0, where every channel's gate is 1/2: the paper trains from
scratch, and a converted network should start near its teacher.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.gains.base import Gain, GainSite


class SqueezeGate(Gain):
    """Gate per sample and channel, computed from the layer's float input."""

    source: ClassVar[str] = "Martinez et al., Training Binary Neural Networks with Real-to-Binary, ICLR 2020"

    def __init__(self, *, site: GainSite, reduction: Annotated[int, Field(gt=0)] = 8) -> None:
        super().__init__(site=site)
        hidden, ends = max(1, site.inputs // reduction), (1,) * len(site.kernel)
        self.pool = nn.AdaptiveAvgPool2d(1) if site.kernel else nn.Identity()
        self.squeeze = nn.Parameter(torch.empty(hidden, site.inputs, *ends))
        self.excite = nn.Parameter(torch.zeros(site.outputs, hidden, *ends))
        # The same start each time: a run is a function of its seed, which is not known at conversion.
        nn.init.kaiming_uniform_(self.squeeze, nonlinearity="relu", generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        apply = F.conv2d if self.site.kernel else F.linear
        squeezed = F.relu(apply(self.pool(x), self.squeeze))
        return y * torch.sigmoid(apply(squeezed, self.excite))
