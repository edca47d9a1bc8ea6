"""Distillation of the teacher's logits, with a share of the labels.

    L = (1 - labels) T^2 KL(softmax(z_T / T) || softmax(z_S / T)) + labels CE(y, softmax(z_S))

T^2 keeps the gradient's size when T changes. With T = 1 and labels = 1/2 the gradient is that of Apprentice's
scheme C, H(y, p_S) / 2 + H(p_T, p_S) / 2. Other tasks have a distance and a loss of their own (`tasks/`).
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.train.losses.base import Loss, Outputs


class Distill(Loss):
    """Distance of the student's softened outputs from the teacher's."""

    source: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531"

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(gt=0)] = 4.0,
        labels: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self.temperature = temperature
        self.labels = labels

    def __call__(self, outputs: Outputs) -> Tensor:
        assert outputs.teacher_logits is not None
        logits = outputs.logits.float()
        loss = outputs.task.follow(logits, outputs.teacher_logits.float(), temperature=self.temperature)
        if self.labels == 0:
            return loss
        return (1 - self.labels) * loss + self.labels * outputs.task.hard_loss(logits, outputs.labels)
