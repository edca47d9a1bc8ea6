"""The training loss of one batch: the recipe's terms over what student and teacher say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.train.features import Features
from bnnconvert.train.losses import LOSSES, Loss, Outputs
from bnnconvert.train.teacher import Teacher
from bnnconvert.values import recipe
from bnnconvert.values.inputs import Example, as_tuple
from bnnconvert.values.tables import build_row


@dataclass(frozen=True)
class BatchLoss:
    """Loss of one batch and the logits that it came from."""

    loss: Tensor
    logits: Tensor
    teacher_logits: Tensor | None


class Objective:
    """Weighted sum of losses. Hooks on the student live until `close`.

    A `joint` teacher has a loss of its own in the sum: the task's loss of the labels, and what the terms ask of it.
    Neither network's terms have a gradient to the other.
    """

    def __init__(
        self,
        losses: list[recipe.Loss],
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        device: torch.device,
        joint: bool = False,
        task: Task = CLASSIFICATION,
    ) -> None:
        self.task = task
        self.settings, self.terms = losses, build_losses(losses)
        foreign = [term.name for term, loss in zip(losses, self.terms, strict=True) if loss.needs_classes]
        if foreign and task.name != "classification":
            raise UsageError(
                f"training.losses: {foreign[0]!r} is for classification, not for {task.name}; leave it out."
            )
        lonely = [term.name for term, loss in zip(losses, self.terms, strict=True) if loss.needs_teacher]
        if lonely and teacher is None:
            raise UsageError(f"training.losses: {lonely[0]!r} needs a teacher, and there is none; use 'cross-entropy'.")
        if joint and not lonely:
            raise UsageError(
                "training.teacher: 'joint', and none of the losses looks at it; add 'distill' or 'mutual'."
            )
        paths: set[str] = set()
        if teacher is not None:
            paths = {path for loss in self.terms for path in loss.features(student, teacher)}
        self.teacher = None
        if teacher is not None and lonely:
            self.teacher = Teacher(teacher, device=device, features=paths, trains=joint, task=task)
        self.features = Features(student, paths)
        try:
            for term in self.terms:
                term.bind(student)
        except UsageError:
            self.close()
            raise
        self.memories = [memory.to(device) for loss in self.terms if (memory := loss.memory()) is not None]
        """What the terms gather over the run; a checkpoint needs it."""

    def __call__(
        self, forward: Callable[..., Any], x: Example, labels: Tensor, *, progress: float, check: bool
    ) -> BatchLoss:
        """Loss of the batch; `forward` is the student as the engine wraps it; `check` looks at the labels first.

        `progress` is the share of the run that is done.
        """
        active = [
            (setting.weight, loss)
            for setting, loss in zip(self.settings, self.terms, strict=True)
            if setting.since <= progress < setting.until
        ]
        for _, loss in active:
            loss.begin_pass()
        theirs, their_features = (None, {}) if self.teacher is None else self.teacher(x)
        logits = self.task.output(forward(*as_tuple(x)))
        if check:
            self.task.check(logits, labels)
        features = self.features.take()
        outputs = Outputs(logits, labels, _constant(theirs), features, _constants(their_features), self.task)
        total = logits.new_zeros((), dtype=torch.float)
        for weight, loss in active:
            total = total + weight * loss(outputs)
        if theirs is not None and self.trained is not None:
            total = total + self.task.hard_loss(theirs.float(), labels)
            mirrored = Outputs(logits.detach(), labels, theirs, _constants(features), their_features, self.task)
            for weight, loss in active:
                term = loss.teacher_term(mirrored)
                total = total if term is None else total + weight * term
        return BatchLoss(total, logits, _constant(theirs))

    @property
    def trained(self) -> nn.Module | None:
        """The teacher's network, if it trains."""
        return None if self.teacher is None or not self.teacher.trains else self.teacher.model

    def close(self) -> None:
        """Remove the hooks from the student."""
        self.features.close()
        for term in self.terms:
            term.close()


def _constant(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _constants(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {path: feature.detach() for path, feature in features.items()}


def build_losses(losses: list[recipe.Loss]) -> list[Loss]:
    """The recipe's losses.

    Raises: UsageError for an unknown loss or option.
    """
    return [
        build_row(LOSSES, named, where=f"training.losses[{index}]", what="loss") for index, named in enumerate(losses)
    ]
