"""Shift-based AdaMax: AdaMax with every factor a power of two, AP2(z) = sign(z) 2^round(log2 |z|).

m <- b1 m + (1 - b1) g,   v <- AP2(max(b2 v, |g|)) + 2^-27,   w <- w - AP2(lr / (1 - b1^t)) m / v

v is a power of two but for the last term, which keeps it from 0, as in the authors' code. The default coefficients
are the paper's, 1 - b1 = 2^-3 and 1 - b2 = 2^-10; their code has 0.9 and 0.999.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer

_FLOOR = 2.0**-27


class ShiftAdaMax(RecipeOptimizer):
    """AdaMax with shifts for multiplications; weight decay is added to the gradient."""

    source: ClassVar[str] = "Hubara et al., Binarized Neural Networks, NeurIPS 2016, arXiv:1602.02830"

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[Pace, Pace] = (1 - 2.0**-3, 1 - 2.0**-10)) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is None
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["mean"], state["largest"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                grad = weight.grad.add(weight, alpha=group["weight_decay"]) if group["weight_decay"] else weight.grad
                mean = state["mean"].lerp_(grad, 1 - first)
                largest = torch.maximum(state["largest"].mul_(second), grad.abs(), out=state["largest"])
                _power_of_two_(largest).add_(_FLOOR)
                rate = _power_of_two_(group["lr"] / (1 - first ** state["step"]))
                weight.addcdiv_(mean, largest, value=-float(rate))
        return None


def _power_of_two_(x: Tensor) -> Tensor:
    """The power of two nearest to a value that is not negative, on a scale of logarithms, in place; 0 stays."""
    return x.log2_().round_().exp2_()
