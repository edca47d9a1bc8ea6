"""Accuracy of anything that turns a batch into logits, and the running means of an epoch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.train.batches import plain_loader, to_input
from bnnconvert.values.data import Data, Samples


@dataclass(frozen=True)
class Accuracy:
    """Share of samples whose largest logit is the label's, and how many there were."""

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


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, the first of a sequence, or `logits` or the first of a mapping.

    Shapes: (N, classes).
    Raises: RefusalError where there is no such tensor.
    """
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()), None)
    elif isinstance(output, Sequence) and output:
        output = output[0]
    if isinstance(output, np.ndarray):
        output = torch.from_numpy(output)
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"{type(output).__name__}"
        raise RefusalError(
            f"The model's output: expected class logits of shape (N, classes), got {found}; "
            "only classifiers can be fine-tuned and evaluated here, train others in your own loop."
        )
    return output


def check_labels(labels: Tensor, classes: int) -> None:
    """Check that every label names one of the model's outputs.

    Raises: UsageError naming the label.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UsageError(
            f"The data has label {wrong}, but the model has {classes} outputs, so labels must lie in 0..{classes - 1}; "
            "use data whose classes are the model's."
        )


@torch.no_grad()
def measure_accuracy(
    predict: Callable[[Any], Any],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    gather: Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]] | None = None,
    as_numpy: bool = False,
) -> Accuracy:
    """Accuracy of `predict`, a map from a model's input to logits, over batches of (input, labels).

    `as_numpy` feeds arrays instead of tensors; `gather` joins what several processes have predicted.
    """
    correct = samples = 0
    for x, labels in batches:
        output = logits_of(predict(x.contiguous().cpu().numpy() if as_numpy else x))
        labels = labels.to(output.device)
        check_labels(labels, output.shape[1])
        guess = output.argmax(dim=1)
        if gather is not None:
            guess, labels = gather((guess, labels))
        correct += int((guess == labels).sum())
        samples += labels.numel()
    return Accuracy(correct / max(samples, 1), samples)


def evaluate_samples(
    predict: Callable[[Any], Any],
    samples: Samples,
    data: Data,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    as_numpy: bool = False,
) -> Accuracy:
    """Accuracy of `predict` on a part of `data`, prepared as for training but not augmented."""
    loader = plain_loader(samples, data, batch_size=batch_size, seed=0)
    batches = ((to_input(images, data, device), labels) for images, labels in loader)
    return measure_accuracy(predict, batches, as_numpy=as_numpy)
