"""RAdam: Adam whose adaptive step waits until its second moment has been seen often enough."""

from typing import ClassVar

import torch

from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer


class RAdam(RecipeOptimizer, torch.optim.RAdam):
    """Rectified Adam."""

    source: ClassVar[str] = "Liu et al., On the Variance of the Adaptive Learning Rate, ICLR 2020, arXiv:1908.03265"

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[Pace, Pace] = (0.9, 0.999)) -> None:
        torch.optim.RAdam.__init__(self, groups, lr=lr, betas=betas)
