"""Bop: no latent weights; a binary weight flips when its gradient has asked for it long enough.

m <- (1 - gamma) m + gamma g            w <- -w if w m > threshold else w,   w in {-1, +1}

A weight has a sign and no size, so what is stored is set to ±1, and the binarizer must not look at sizes. `gamma`
follows the schedule of the learning rate, as the authors lower it. Everything else, and latent weights in a stage
that leaves them float, is trained by Adam. At w m = threshold the authors' code makes any weight +1; here it stays.
"""

import copy
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.train.optimizers.base import Groups, Pace, RecipeOptimizer


class Bop(RecipeOptimizer, torch.optim.Adam):
    """Flips for binary weights, Adam for the rest."""

    source: ClassVar[str] = "Helwegen et al., Latent Weights Do Not Exist, NeurIPS 2019, arXiv:1906.02107"

    def __init__(
        self,
        groups: Groups,
        *,
        lr: float,
        fused: bool,
        gamma: Annotated[float, Field(gt=0, le=1)] = 1e-4,
        threshold: Annotated[float, Field(ge=0)] = 1e-8,
        betas: tuple[Pace, Pace] = (0.9, 0.999),
    ) -> None:
        torch.optim.Adam.__init__(self, groups, lr=lr, betas=betas, fused=fused)
        self.gamma, self.threshold = gamma, threshold

    @classmethod
    def obstacle(cls, binarizer: WeightBinarizer, weight: Tensor) -> str | None:
        binarizer = copy.deepcopy(binarizer).eval()  # a method may note what passes through it
        signs = sign_pm1(weight.detach()).requires_grad_()
        with torch.enable_grad():
            quantized = binarizer(signs)
            (gradient,) = torch.autograd.grad(quantized.sum(), signs)
        if not torch.equal(quantized, binarizer(weight.detach())):
            return "its binary weights depend on the sizes of the latent ones, and Bop has none; use 'sign'"
        return None if bool(gradient.all()) else "no gradient passes its estimator at ±1; use 'identity'"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            if group["kind"] != "binary":
                continue
            gamma = self.gamma * group["lr"] / self.defaults["lr"]
            for weight in group["params"]:
                state = self.state[weight]
                if group["binary"] and weight.grad is not None:
                    _flip(weight, state, gamma=gamma, threshold=self.threshold)
                    weight.grad = None  # so that Adam leaves it alone
                elif "consistency" in state:
                    state.clear()
        return torch.optim.Adam.step(self, closure)


def _flip(weight: Tensor, state: dict[str, Tensor], *, gamma: float, threshold: float) -> None:
    if "consistency" not in state:
        state.clear()
        state["step"] = torch.zeros(())  # torch's Adam looks for one wherever there is state
        state["consistency"] = torch.zeros_like(weight, dtype=torch.float)
    assert weight.grad is not None
    mean = state["consistency"].lerp_(weight.grad.float(), gamma)
    signs = sign_pm1(weight)
    weight.copy_(torch.where(signs * mean > threshold, -signs, signs))
