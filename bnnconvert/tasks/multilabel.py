"""Any number of labels per sample, each a question of its own.

follow    T^2 mean_k KL(Bernoulli(sigma(z_T / T)) || Bernoulli(sigma(z_S / T)))
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.tasks.base import Meter, Task, check_same_shape, torchmetrics_for


class MultiLabel(Task):
    """Logits (N, labels), targets of 0 and 1 (N, labels); the score is F1, the mean over labels."""

    name: ClassVar[str] = "multi-label"
    metric: ClassVar[str] = "F1"
    same: ClassVar[str] = "the same labels"
    dims: ClassVar[tuple[int, ...]] = (2,)
    shape: ClassVar[str] = "(N, labels)"

    def target(self, value: Any) -> Tensor:
        return torch.as_tensor(value).to(torch.float32)

    def check(self, output: Tensor, targets: Tensor) -> None:
        check_same_shape(self.name, output, targets)
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise UsageError("The data's targets are not all 0 or 1; multi-label needs one of them for each label.")

    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, targets * (1 - smoothing) + smoothing / 2)

    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        soft = (teacher / temperature).sigmoid()
        ours = F.binary_cross_entropy_with_logits(student / temperature, soft)
        least = F.binary_cross_entropy_with_logits(teacher / temperature, soft)
        return (ours - least) * temperature**2

    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        return ((output > 0) == (targets > 0)).float().mean(dim=1)

    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a > 0) == (b > 0)).double().mean(dim=1)

    def meter(self, outputs: int, device: torch.device) -> Meter:
        metric = torchmetrics_for(self.name).classification.MultilabelF1Score(num_labels=outputs, average="macro")
        return _OnLogits(metric.to(device))


class _OnLogits:
    """Hands decisions to the metric: it would take logits that all lie in [0, 1] for probabilities."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def update(self, output: Tensor, targets: Tensor) -> None:
        self.metric.update((output > 0).int(), targets.int())

    def compute(self) -> Any:
        return self.metric.compute()
