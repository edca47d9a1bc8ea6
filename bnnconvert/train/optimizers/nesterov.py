"""Stochastic gradient descent with Nesterov's momentum.

m <- momentum m + g,   w <- w - lr (g + momentum m)
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from bnnconvert.train.optimizers.base import Groups, RecipeOptimizer


class Nesterov(RecipeOptimizer, torch.optim.SGD):
    """Gradient descent that looks ahead along its momentum."""

    source: ClassVar[str] = "Sutskever et al., On the Importance of Initialization and Momentum, ICML 2013"

    def __init__(
        self, groups: Groups, *, lr: float, fused: bool, momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    ) -> None:
        torch.optim.SGD.__init__(self, groups, lr=lr, momentum=momentum, nesterov=True, fused=fused)
