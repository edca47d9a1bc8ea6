"""EDE, the error decay estimator: from nearly the identity to nearly sign.

g_x = g * k * t * (1 - tanh(t x)^2)
t   = t_min * (t_max / t_min)^progress,    k = max(1 / t, 1)
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Ede(Estimator):
    """Tanh derivative that sharpens over the run; first k t = 1 keeps the update, then t grows past 1."""

    source: ClassVar[str] = "Qin et al., IR-Net, CVPR 2020, arXiv:1909.10788"
    t: Tensor
    k: Tensor

    def __init__(
        self, *, t_min: Annotated[float, Field(gt=0)] = 0.1, t_max: Annotated[float, Field(gt=0)] = 10.0
    ) -> None:
        super().__init__()
        self.t_min, self.t_max = t_min, t_max
        self.register_buffer("t", torch.tensor(t_min))
        self.register_buffer("k", torch.tensor(1.0))
        self.advance(0.0)

    def advance(self, progress: float) -> None:
        t = self.t_min * (self.t_max / self.t_min) ** progress
        self.t.fill_(t)
        self.k.fill_(max(1 / t, 1.0))

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        curve = (x * self.t).tanh_()
        return torch.ops.aten.tanh_backward(grad, curve).mul_(self.k * self.t)  # type: ignore[no-any-return]
