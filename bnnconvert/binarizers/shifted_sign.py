"""RSign of ReActNet: sign after a learned shift per channel.

    x^ = sign(x + b_c)        g_x = g' (estimator at x + b),   g_b = sum over all but c of g_x

Deployed as the threshold -b_c: x + b >= 0 exactly when x >= -b, also in floating point.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, sign_encoder
from bnnconvert.channels import shift
from bnnconvert.estimators.base import Estimator


class ShiftedSignInput(InputBinarizer):
    """Sign with a learned threshold per channel; with `centre`, it starts at the channel's mean on data."""

    source: ClassVar[str] = "Liu et al., ReActNet, ECCV 2020, arXiv:2003.03488"

    def __init__(self, channels: int, *, estimator: Estimator, centre: bool = True) -> None:
        super().__init__(channels)
        self.estimator = estimator
        self.centre = centre
        self.shift = nn.Parameter(torch.zeros(channels))

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(self.estimator(x, self.shift))]

    def relaxed(self, x: Tensor) -> Tensor:
        return super().relaxed(shift(x, self.shift))

    def encoder(self) -> Encoder:
        return sign_encoder(-self.shift)

    def calibrate(self, x: Tensor) -> None:
        if self.centre:
            with torch.no_grad():
                self.shift.copy_(-x.transpose(0, 1).flatten(1).mean(dim=1))
