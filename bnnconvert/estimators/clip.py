"""Clipped straight-through: the derivative of hardtanh.

g_x = g * 1{|x| <= 1}      closed (the BNN paper)
g_x = g * 1{|x| <  1}      open   (the XNOR-Net code)
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Clip(Estimator):
    """Straight-through estimator that is zero outside [-1, 1], or outside (-1, 1) with `closed = false`."""

    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def __init__(self, *, closed: bool = True) -> None:
        super().__init__()
        # hardtanh_backward masks the open interval, in one pass; one step above 1 closes it.
        self.bound = float(torch.nextafter(torch.tensor(1.0), torch.tensor(math.inf))) if closed else 1.0

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        return torch.ops.aten.hardtanh_backward(grad, x, -self.bound, self.bound)  # type: ignore[no-any-return]
