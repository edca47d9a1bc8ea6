"""Extragradient: the gradient is taken where plain descent would have led.

w' = w - lr g(w),   w <- w - lr g(w')          both on the same batch, so a training step costs two

Made for the stiff quadratic term of ADMM, on which plain descent swings from side to side.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from bnnconvert.train.optimizers.base import Groups, RecipeOptimizer


class Extragradient(RecipeOptimizer):
    """Descent in two calls: the first goes to w', the second from w on; weight decay is added to the gradient."""

    source: ClassVar[str] = "Leng et al., Extremely Low Bit Neural Network, AAAI 2018, arXiv:1707.09870"
    evaluations: ClassVar[int] = 2

    def __init__(self, groups: Groups, *, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                grad = weight.grad.add(weight, alpha=group["weight_decay"]) if group["weight_decay"] else weight.grad
                state = self.state[weight]
                if "start" in state:
                    weight.copy_(state.pop("start"))
                else:
                    state["start"] = weight.clone()
                weight.add_(grad, alpha=-group["lr"])
        return None
