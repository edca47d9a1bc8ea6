"""Adam: a step per weight of about the learning rate, whatever the size of its gradient.

m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr m^ / (sqrt(v^) + eps)      m^, v^ without start bias
"""

from typing import ClassVar

import torch

from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer


class Adam(RecipeOptimizer, torch.optim.Adam):
    """Adam; weight decay is added to the gradient."""

    source: ClassVar[str] = "Kingma and Ba, Adam, ICLR 2015, arXiv:1412.6980"

    def __init__(self, groups: Groups, *, lr: float, fused: bool, betas: tuple[Pace, Pace] = (0.9, 0.999)) -> None:
        torch.optim.Adam.__init__(self, groups, lr=lr, betas=betas, fused=fused)
