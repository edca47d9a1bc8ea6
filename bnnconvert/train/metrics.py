"""The task's score of anything that turns a batch into outputs, and the running means of an epoch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.batches import plain_loader, to_input
from bnnconvert.values.data import Data, Samples
from bnnconvert.values.inputs import Example, as_tuple


@dataclass(frozen=True)
class Accuracy:
    """The task's score, for classifiers the share of samples whose largest logit is the label's, and their number."""

    accuracy: float
    samples: int


@dataclass
class Tally:
    """Sums over the part of an epoch that is done, over all processes."""

    loss: float = 0.0
    correct: float = 0.0
    samples: float = 0.0

    def add(self, loss: float, correct: float, samples: float) -> None:
        """Add one batch, its loss as a sum over its samples."""
        self.loss += loss
        self.correct += correct
        self.samples += samples

    @property
    def mean_loss(self) -> float:
        """Loss per sample."""
        return self.loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        """Share of correct samples, in [0, 1]."""
        return self.correct / max(self.samples, 1)


@torch.no_grad()
def measure_accuracy(
    predict: Callable[..., Any],
    batches: Iterable[tuple[Example, Tensor]],
    *,
    task: Task = CLASSIFICATION,
    gather: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]] | None = None,
    as_numpy: bool = False,
) -> Accuracy:
    """Score of `predict`, a map from a model's input or inputs to its output, over batches of (input, targets).

    `as_numpy` feeds arrays instead of tensors; `gather` joins what several processes have predicted.
    """
    meter, samples = None, 0
    for x, targets in batches:
        given = [each.contiguous().cpu().numpy() if as_numpy else each for each in as_tuple(x)]
        output = task.output(predict(*given)).float()
        targets = targets.to(output.device)
        task.check(output, targets)
        if gather is not None:
            output, targets = gather((output, targets))
        if meter is None:
            meter = task.meter(output.shape[1], output.device)
        meter.update(output, targets)
        samples += len(targets)
    return Accuracy(0.0 if meter is None else float(meter.compute()), samples)


def evaluate_samples(
    predict: Callable[..., Any],
    samples: Samples,
    data: Data,
    *,
    task: Task = CLASSIFICATION,
    batch_size: int = 256,
    device: torch.device | None = None,
    as_numpy: bool = False,
) -> Accuracy:
    """Score of `predict` on a part of `data`, prepared as for training but not augmented."""
    loader = plain_loader(samples, data, batch_size=batch_size, seed=0)
    batches = ((to_input(given, data, device), labels) for given, labels in loader)
    return measure_accuracy(predict, batches, task=task, as_numpy=as_numpy)
