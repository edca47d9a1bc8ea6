"""Guided training: a float twin trains along, and each network is drawn to the other's outputs.

    R = mean (z_S - z_T)^2 + mean over paths of  mean (Q(f_S) - Q(f_T))^2
    student  L + R with z_T, f_T constant        teacher  cross-entropy + R with z_S, f_S constant

For a teacher that trains (`teacher = "joint"`); with a frozen one only the student moves. Q is the identity or, with
`bits`, rounding to 2^bits levels in [-1, 1] whose gradient is that of clip(-1, f, 1): what a next layer of so many bits
reads. The paper's levels are DoReFa's in [0, 1], which its activations have.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.errors import UsageError
from bnnconvert.layers.levels import levels
from bnnconvert.train.losses.base import Loss, Outputs
from bnnconvert.train.losses.pairing import check_shapes, paired_paths


class Mutual(Loss):
    """Mean squared distance of the logits, and of the outputs of the modules at the paths `at`, globs allowed."""

    source: ClassVar[str] = "Zhuang et al., Effective Low-bitwidth Networks, CVPR 2018, arXiv:1711.00205"

    def __init__(self, *, at: list[str] | None = None, bits: Annotated[int, Field(ge=1, le=8)] | None = None) -> None:
        if bits is not None and not at:
            raise UsageError("training.losses: `bits` of 'mutual' are of features; name their modules with `at`.")
        self.at, self.bits = at or [], bits
        self.paths: list[str] = []

    def features(self, student: nn.Module, teacher: nn.Module) -> list[str]:
        self.paths = paired_paths(student, teacher, self.at, what="mutual")
        return self.paths

    def teacher_term(self, outputs: Outputs) -> Tensor | None:
        return self(outputs)

    def __call__(self, outputs: Outputs) -> Tensor:
        assert outputs.teacher_logits is not None
        loss = F.mse_loss(outputs.logits.float(), outputs.teacher_logits.float())
        terms = []
        for path in self.paths:
            ours, theirs = outputs.features[path], outputs.teacher_features[path]
            check_shapes(path, tuple(ours.shape), tuple(theirs.shape), what="mutual")
            terms.append(F.mse_loss(self._read(ours.float()), self._read(theirs.float())))
        return loss + torch.stack(terms).mean() if terms else loss

    def _read(self, feature: Tensor) -> Tensor:
        return feature if self.bits is None else levels(feature, self.bits)
