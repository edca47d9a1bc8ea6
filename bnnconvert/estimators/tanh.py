"""The derivative of tanh(nu x), with a fixed sharpness or one that grows over the run.

g_x = g * nu * (1 - tanh(nu x)^2)
nu  = start * (end / start)^min(progress / until, 1)

For nu -> infinity tanh(nu x) is sign and the derivative is a spike at 0. EDE (`ede`) is the same curve times
max(1 / t, 1), which keeps its height from falling below 1.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.estimators.base import Estimator


class Tanh(Estimator):
    """Tanh derivative; the sharpness goes from `start` to `end`, reached at the share `until` of the run."""

    source: ClassVar[str] = "Lahoud et al., Self-Binarizing Networks, 2019, arXiv:1902.00730"
    nu: Tensor

    def __init__(
        self,
        *,
        start: Annotated[float, Field(gt=0)] = 1.0,
        end: Annotated[float, Field(gt=0)] | None = None,
        until: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        super().__init__()
        self.start, self.end, self.until = start, start if end is None else end, until
        self.register_buffer("nu", torch.tensor(start))

    def advance(self, progress: float) -> None:
        self.nu.fill_(self.start * (self.end / self.start) ** min(progress / self.until, 1.0))

    def soft(self, x: Tensor) -> Tensor:
        """The function itself, tanh(nu x)."""
        return torch.tanh(x * self.nu)

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        curve = (x * self.nu).tanh_()
        return torch.ops.aten.tanh_backward(grad, curve).mul_(self.nu)  # type: ignore[no-any-return]
