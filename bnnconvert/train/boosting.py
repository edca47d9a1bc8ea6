"""How the members of an ensemble come to see different samples, and how much each one's vote weighs.

e = sum u miss / sum u, kept in [1e-6, 1/2];   m = +1 where a member is wrong, -1 where it is right

bagging  a = 1                                            u stays; each member has a bootstrap sample of its own
A        a = ln((1 - e) / e) / 2                          u <- u exp(a m)
B        a as in A                                        u <- 1 / ((1 / u - 1) exp(-a m) + 1)
C        a as in A,  v = (1 - u) exp(-a m)                u <- 1 - v N / (10 sum v)
D        a = (ln((1 - e) / e) + ln(classes - 1)) / 10     u <- u exp(a m)

u draws the next member's samples, anew in each epoch; it is not a weight in the loss. u starts at 1 / N. The authors'
code has 5000 for N / 10 in C and 9 for classes - 1 in D, those of CIFAR-10.
Source: Zhu et al., Binary Ensemble Neural Network, CVPR 2019, arXiv:1806.07550, and the authors' code
"""

import math

import torch
from torch import Tensor

from bnnconvert.values.recipe import Ensemble

LEAST_ERROR, MOST_ERROR = 1e-6, 0.5


def uniform(samples: int) -> Tensor:
    """Weights of the first member's samples."""
    return torch.full((samples,), 1 / samples, dtype=torch.float64)


def weighted_error(weights: Tensor, wrong: Tensor) -> float:
    """Share of the weight that lies on samples which a member gets wrong. Shapes: (N,) both, wrong bool."""
    return float(weights[wrong].sum() / weights.sum())


def boosted(settings: Ensemble, weights: Tensor, wrong: Tensor, *, classes: int) -> tuple[float, Tensor]:
    """A trained member's vote, and the weights of the next member's samples.

    Shapes: weights (N,) float64, wrong (N,) bool.
    """
    if settings.scheme == "bagging":
        return 1.0, weights
    error = min(max(weighted_error(weights, wrong), LEAST_ERROR), MOST_ERROR)
    odds = math.log((1 - error) / error)
    alpha = (odds + math.log(max(classes - 1, 1))) / 10 if settings.scheme == "boosting-d" else odds / 2
    grown = torch.exp(alpha * torch.where(wrong, 1.0, -1.0).to(weights.dtype))
    if settings.scheme == "boosting-b":
        return alpha, 1 / ((1 / weights - 1) / grown + 1)
    if settings.scheme == "boosting-c":
        rest = (1 - weights) / grown
        return alpha, (1 - rest * (len(weights) / 10) / rest.sum()).clamp(min=0)
    return alpha, weights * grown
