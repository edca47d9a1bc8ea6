"""Penalty on PACT's clip levels, so that they settle where clipping and rounding cost the same.

L = 1/2 sum over layers of a^2        g_a = a: with the loss's weight, what weight decay would add to a
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.pact import PactInput
from bnnconvert.errors import UsageError
from bnnconvert.train.losses.base import Loss, Outputs


class ClipLevel(Loss):
    """Half the sum of the squared clip levels of all inputs binarized by `pact`."""

    source: ClassVar[str] = "Choi et al., PACT, 2018, arXiv:1805.06085"
    needs_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self.levels: list[nn.Parameter] = []

    def bind(self, student: nn.Module) -> None:
        self.levels = [module.clip for module in student.modules() if isinstance(module, PactInput)]
        if not self.levels:
            raise UsageError("training.losses: 'clip-level' is about inputs binarized by 'pact', and there are none.")

    def __call__(self, outputs: Outputs) -> Tensor:
        return torch.stack(tuple(self.levels)).square().sum() / 2
