"""Accuracy of anything that turns a batch into logits, and the running means of an epoch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnnconvert.errors import RefusalError, UsageError


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
    if not isinstance(output, Tensor):
        output = torch.as_tensor(output) if hasattr(output, "__array__") else None
    if output is None or output.dim() != 2:
        shape = "nothing of the kind" if output is None else f"a tensor of shape {tuple(output.shape)}"
        raise RefusalError(f"The model's output: expected class logits of shape (N, classes), got {shape}.")
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
