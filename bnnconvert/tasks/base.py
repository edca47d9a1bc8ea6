"""What a task says: what targets look like, the loss, what it means to follow a teacher, and the score."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from bnnconvert.errors import RefusalError, UsageError, first_line
from bnnconvert.values.outputs import as_plain


class Meter(Protocol):
    """Gathers batches of one data set into a score; torchmetrics' metrics are such meters."""

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Take in one batch."""

    def compute(self) -> Any:
        """The score of all batches, as a number."""


class Task(ABC):
    """One kind of supervised problem on one tensor of outputs. Scores are shown in percent."""

    name: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score."""
    higher_is_better: ClassVar[bool] = True
    same: ClassVar[str]
    """What a share of agreement counts, as in `the same class in 99 %`."""
    dims: ClassVar[tuple[int, ...]]
    """Numbers of axes that the output may have."""
    shape: ClassVar[str]
    """The output's shape in words of axes."""
    moves_with_image: ClassVar[bool] = False
    """Whether targets have places in the image, so that it may not be cropped or flipped alone."""

    def output(self, output: Any) -> Tensor:
        """The tensor in what a model returns: itself, the first of a sequence, or `logits` or the first of a mapping.

        Raises: RefusalError where there is no such tensor.
        """
        output = as_plain(output)
        if isinstance(output, Mapping):
            output = output["logits"] if "logits" in output else next(iter(output.values()), None)
        elif isinstance(output, Sequence) and output:
            output = output[0]
        if isinstance(output, np.ndarray):
            output = torch.from_numpy(output)
        if not isinstance(output, Tensor) or output.dim() not in self.dims:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"{type(output).__name__}"
            raise RefusalError(
                f"The model's output: {self.name} expects shape {self.shape}, got {found}; name another task with "
                "--task, or train the model in your own loop."
            )
        return output

    @abstractmethod
    def target(self, value: Any) -> Tensor:
        """Target of one sample as a data set gives it; batches stack them.

        Raises: TypeError, ValueError or RuntimeError where it is none.
        """

    @abstractmethod
    def check(self, output: Tensor, targets: Tensor) -> None:
        """Check that a batch's targets fit the output.

        Raises: UsageError.
        """

    @abstractmethod
    def hard_loss(self, output: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Loss of the targets, a mean over the batch; `smoothing` only where targets are classes."""

    @abstractmethod
    def follow(self, student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        """How far the student's outputs are from the teacher's, a mean over the batch; 0 where they are the same."""

    @abstractmethod
    def quick_scores(self, output: Tensor, targets: Tensor) -> Tensor:
        """A figure of each sample to watch while training, in place of the score. Shapes: (N,)."""

    @abstractmethod
    def agreement(self, a: Tensor, b: Tensor) -> Tensor:
        """Share of each sample's answers that two outputs have in common. Shapes: (N,), in [0, 1]."""

    @abstractmethod
    def meter(self, outputs: int, device: torch.device) -> Meter:
        """A fresh meter of the score; `outputs` is the size of the output's second axis."""

    def no_worse(self, new: float, old: float) -> bool:
        """Whether one score is as good as another, or better."""
        return new >= old if self.higher_is_better else new <= old


def torchmetrics_for(task: str) -> Any:
    """The torchmetrics package.

    Raises: UsageError where it is not installed.
    """
    try:
        import torchmetrics
    except ImportError as error:
        raise UsageError(f"Task {task!r} measures with torchmetrics; pip install 'bnnconvert[tasks]'.") from error
    except RuntimeError as error:  # torchmetrics imports what it finds, such as a torchvision of another torch
        raise UsageError(
            f"Task {task!r} measures with torchmetrics, which cannot be imported ({first_line(error)}); mend that."
        ) from error
    return torchmetrics


def check_same_shape(task: str, output: Tensor, targets: Tensor) -> None:
    """Check targets that have a value for each output.

    Raises: UsageError with both shapes.
    """
    if output.shape != targets.shape:
        raise UsageError(
            f"The data's targets have the shape {tuple(targets.shape)}, but the model's output has "
            f"{tuple(output.shape)}; {task} needs one target for each output."
        )
