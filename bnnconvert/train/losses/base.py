"""What a loss is: a number from one batch's outputs, the teacher's included where the loss asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from bnnconvert.tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Outputs:
    """What student and teacher made of one batch; features are by name.

    Shapes: as the task has them; for classification logits and teacher_logits (N, classes), labels (N,).
    """

    logits: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    task: Task = CLASSIFICATION


class Loss(ABC):
    """One term of the training loss, a mean over the batch."""

    source: ClassVar[str]
    needs_teacher: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False
    """Whether the loss is about samples of one class each, and so for classification only."""

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        """Names of the features that the loss compares, paths for outputs of modules; none by default.

        Raises: UsageError where a path of the recipe is in neither model.
        """
        return []

    def bind(self, student: nn.Module) -> None:
        """Look at the student once before training, for terms about weights or about what reaches a sign.

        Raises: UsageError where the student has nothing that the term is about.
        """

    def memory(self) -> nn.Module | None:
        """What the term gathers over the run, as buffers for a checkpoint; nothing by default."""
        return None

    def begin_pass(self) -> None:
        """Look at the student's next forward pass, whose outputs the loss will be called with."""

    def close(self) -> None:
        """Take off the student what `bind` put there."""

    def teacher_term(self, outputs: Outputs) -> Tensor | None:
        """What the loss asks of a teacher that trains, with gradient to the teacher only; nothing by default."""
        return None

    @abstractmethod
    def __call__(self, outputs: Outputs) -> Tensor:
        """The loss as a scalar with gradient to the student only."""
