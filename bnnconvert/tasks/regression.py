"""Numbers per sample.

follow    mean (y_S - y_T)^2
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.tasks.base import Meter, Task, check_same_shape, torchmetrics_for

CLOSE = 0.01
"""Two values agree where they differ by at most so much of the batch's spread of that output."""


class Regression(Task):
    """Values (N, outputs), targets (N, outputs); the score is R^2, the share of the targets' variance explained."""

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "R2"
    same: ClassVar[str] = "values within 1 % of their spread"
    dims: ClassVar[tuple[int, ...]] = (2,)
    shape: ClassVar[str] = "(N, outputs)"

    def target(self, value: Any) -> Tensor:
        return torch.as_tensor(value).to(torch.float32).reshape(-1)

    def check(self, output: Tensor, targets: Tensor) -> None:
        check_same_shape(self.name, output, targets)

    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return F.mse_loss(output, targets)

    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        return F.mse_loss(student, teacher)

    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        spread = (targets - targets.mean(dim=0)).square().mean().clamp(min=1e-12)
        return 1 - (output - targets).square().mean(dim=1) / spread

    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        spread = b.double().std(dim=0, correction=0) if len(b) > 1 else b[0].double().abs()
        return ((a - b).abs() <= CLOSE * spread).double().mean(dim=1)

    def meter(self, outputs: int, device: torch.device) -> Meter:
        meter: Meter = torchmetrics_for(self.name).R2Score().to(device)
        return meter
