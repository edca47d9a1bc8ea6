"""AdamW: Adam with weight decay beside the gradient, not in it.

w <- w - lr (m^ / (sqrt(v^) + eps) + decay w)
"""

from typing import ClassVar

import torch

from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer


class AdamW(RecipeOptimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay."""

    source: ClassVar[str] = "Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101"

    def __init__(self, groups: Groups, *, lr: float, fused: bool, betas: tuple[Pace, Pace] = (0.9, 0.999)) -> None:
        torch.optim.AdamW.__init__(self, groups, lr=lr, betas=betas, fused=fused)
