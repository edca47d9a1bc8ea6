"""Cross-entropy with the labels, or what a task other than classification has in its place (`tasks/`).

L = -sum_k q_k log p_k,    q = (1 - s) onehot(y) + s / K
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.train.losses.base import Loss, Outputs


class CrossEntropy(Loss):
    """Cross-entropy with the labels, smoothed by `smoothing`."""

    source: ClassVar[str] = "Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv:1512.00567"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, *, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, outputs: Outputs) -> Tensor:
        return outputs.task.hard_loss(outputs.logits.float(), outputs.labels, smoothing=self.smoothing)
