"""The training loss of one batch: the recipe's terms over what student and teacher say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError
from bnnconvert.train.features import Features
from bnnconvert.train.losses import LOSSES, Loss, Outputs
from bnnconvert.train.metrics import check_labels, logits_of
from bnnconvert.train.teacher import Teacher
from bnnconvert.values import recipe
from bnnconvert.values.tables import build_row


@dataclass(frozen=True)
class BatchLoss:
    """Loss of one batch and the logits that it came from."""

    loss: Tensor
    logits: Tensor
    teacher_logits: Tensor | None


class Objective:
    """Weighted sum of losses. Hooks on the student live until `close`."""

    def __init__(
        self, losses: list[recipe.Loss], student: nn.Module, teacher: nn.Module | None, *, device: torch.device
    ) -> None:
        self.settings, self.terms = losses, build_losses(losses)
        lonely = [term.name for term, loss in zip(losses, self.terms, strict=True) if loss.needs_teacher]
        if lonely and teacher is None:
            raise UsageError(f"training.losses: {lonely[0]!r} needs a teacher, and there is none; use 'cross-entropy'.")
        paths: set[str] = set()
        if teacher is not None:
            paths = {path for loss in self.terms for path in loss.features(student, teacher)}
        self.teacher = Teacher(teacher, device=device, features=paths) if teacher is not None and lonely else None
        self.features = Features(student, paths)
        for term in self.terms:
            term.bind(student)

    def __call__(
        self, forward: Callable[[Tensor], Any], x: Tensor, labels: Tensor, *, progress: float, check: bool
    ) -> BatchLoss:
        """Loss of the batch; `forward` is the student as the engine wraps it; `check` looks at the labels first.

        `progress` is the share of the run that is done.
        """
        theirs, their_features = (None, {}) if self.teacher is None else self.teacher(x)
        logits = logits_of(forward(x))
        if check:
            check_labels(labels, logits.shape[1])
        outputs = Outputs(logits, labels, theirs, self.features.take(), their_features)
        total = logits.new_zeros((), dtype=torch.float)
        for setting, loss in zip(self.settings, self.terms, strict=True):
            if setting.since <= progress < setting.until:
                total = total + setting.weight * loss(outputs)
        return BatchLoss(total, logits, theirs)

    def close(self) -> None:
        """Remove the hooks from the student."""
        self.features.close()
        for term in self.terms:
            term.close()


def build_losses(losses: list[recipe.Loss]) -> list[Loss]:
    """The recipe's losses.

    Raises: UsageError for an unknown loss or option.
    """
    return [
        build_row(LOSSES, named, where=f"training.losses[{index}]", what="loss") for index, named in enumerate(losses)
    ]
