"""Stochastic gradient descent with momentum.

m <- momentum m + g,   w <- w - lr m
"""

from typing import ClassVar

import torch

from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer


class SGD(RecipeOptimizer, torch.optim.SGD):
    """Gradient descent with a heavy ball."""

    source: ClassVar[str] = "Polyak, Some Methods of Speeding Up the Convergence of Iteration Methods, 1964"

    def __init__(self, groups: Groups, *, lr: float, fused: bool, momentum: Pace = 0.9) -> None:
        torch.optim.SGD.__init__(self, groups, lr=lr, momentum=momentum, fused=fused)
