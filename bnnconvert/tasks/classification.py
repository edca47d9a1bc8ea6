"""One class per sample.

follow    T^2 KL(softmax(z_T / T) || softmax(z_S / T)),    T^2 keeps the gradient's size when T changes
"""

from operator import index
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.tasks.base import Meter, Task


class Classification(Task):
    """Logits (N, classes), labels (N,); the score is top-1 accuracy."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    same: ClassVar[str] = "the same top-1 class"
    dims: ClassVar[tuple[int, ...]] = (2,)
    shape: ClassVar[str] = "(N, classes)"

    def target(self, value: Any) -> Tensor:
        number: Any = value.item() if isinstance(value, Tensor) else value
        return torch.tensor(index(number))

    def check(self, output: Tensor, targets: Tensor) -> None:
        classes, low, high = output.shape[1], int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise UsageError(
                f"The data has label {low if low < 0 else high}, but the model has {classes} outputs, so labels must "
                f"lie in 0..{classes - 1}; use data whose classes are the model's."
            )

    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(output, targets, label_smoothing=smoothing)

    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        ours, theirs = (F.log_softmax(z / temperature, dim=1) for z in (student, teacher))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2

    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        return output.argmax(dim=1) == targets

    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        one, other = (z.reshape(len(z), -1).argmax(dim=1) for z in (a, b))
        return (one == other).double()

    def meter(self, outputs: int, device: torch.device) -> Meter:
        return _TopOne()


class _TopOne:
    """Right answers over all, in double precision and without torchmetrics, which classifiers can do without."""

    def __init__(self) -> None:
        self.right = self.samples = 0

    def update(self, output: Tensor, targets: Tensor) -> None:
        self.right += int((output.argmax(dim=1) == targets).sum())
        self.samples += targets.numel()

    def compute(self) -> float:
        return self.right / max(self.samples, 1)
