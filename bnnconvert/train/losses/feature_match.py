"""Match features at modules that student and teacher have in common.

    L = mean over paths of  mean_n || f_S / ||f_S|| - f_T / ||f_T|| ||^2        f_n flattened, in [0, 4]

Only the direction counts: a rewritten layer has its own scale. Without `at`, the modules are the activations that hold
in the student what they hold in the teacher.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.train.losses.base import Loss, Outputs
from bnnconvert.train.losses.pairing import alike_activations, check_shapes, paired_paths


class FeatureMatch(Loss):
    """Squared distance of normalised outputs of the modules at the paths `at`, globs allowed."""

    source: ClassVar[str] = "Romero et al., FitNets, ICLR 2015, arXiv:1412.6550"

    def __init__(self, *, at: Annotated[list[str], Field(min_length=1)] | None = None) -> None:
        self.at = at
        self.paths: list[str] = []

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        if self.at is not None:
            self.paths = paired_paths(student, teacher, self.at, what="feature-match")
        else:
            self.paths = alike_activations(student, teacher)
        if not self.paths:
            raise UsageError(
                "training.losses: feature-match finds no activation behind a binary layer that is what it is in the "
                "teacher; name modules with `at`, or leave the loss out."
            )
        return self.paths

    def __call__(self, outputs: Outputs) -> Tensor:
        terms = []
        for path in self.paths:
            ours, theirs = outputs.features[path], outputs.teacher_features[path]
            check_shapes(path, tuple(ours.shape), tuple(theirs.shape), what="feature-match")
            difference = F.normalize(ours.float().flatten(1), dim=1) - F.normalize(theirs.float().flatten(1), dim=1)
            terms.append(difference.square().sum(dim=1).mean())
        return torch.stack(terms).mean()
