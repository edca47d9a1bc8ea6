"""Match attention maps: where in the image the energy is, whatever channel carries it.

    A = mean_c f_c^2        L = mean over paths of  mean_n || A_S / ||A_S|| - A_T / ||A_T|| ||^2

Zero where the student equals the teacher, and unchanged when a feature map is scaled.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.train.losses.base import Loss, Outputs
from bnnconvert.train.losses.pairing import check_shapes, paired_paths


class AttentionMatch(Loss):
    """Squared distance of normalised channel-mean-square maps at the paths `at`, globs allowed."""

    source: ClassVar[str] = "Martinez et al., Training Binary Neural Networks with Real-to-Binary, ICLR 2020"

    def __init__(self, *, at: Annotated[list[str], Field(min_length=1)]) -> None:
        self.at = at
        self.paths: list[str] = []

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        self.paths = paired_paths(student, teacher, self.at, what="attention-match")
        return self.paths

    def __call__(self, outputs: Outputs) -> Tensor:
        terms = []
        for path in self.paths:
            ours, theirs = _map(outputs.features[path]), _map(outputs.teacher_features[path])
            check_shapes(path, tuple(ours.shape), tuple(theirs.shape), what="attention-match")
            terms.append((ours - theirs).square().sum(dim=1).mean())
        return torch.stack(terms).mean()


def _map(feature: Tensor) -> Tensor:
    return F.normalize(feature.float().square().mean(dim=1).flatten(1), dim=1)
