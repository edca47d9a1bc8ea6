"""AdaBin: two values per filter and per layer's input, wherever they lie, in place of -1 and +1.

weights   W^_o = a_o sign((W_o - b_o) / a_o) + b_o,    b_o = mean W_o,   a_o = sqrt(mean (W_o - b_o)^2)
inputs    x^   = a sign((x - b) / a) + b,              a > 0 and b learned, one each per layer

backward, f' the estimator's derivative at u = (x - b) / a:
  weights   through sign, a_o and b_o
  inputs    g_x = g f',   g_b = sum g (1 - f'),   g_a = sum g (sign(u) - u f')

Each operand is two planes, the signs times a and a plane of +1 times b, so that a layer adds four products. The one of
both +1 planes is a constant, except at the border, where zero padding is outside the set.

This is the paper's formula. Its authors' code returns a (sign(u) + b) for inputs: a centre a b beside a threshold b.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, WeightBinarizer
from bnnconvert.channels import inner_product
from bnnconvert.estimators.base import Estimator, sign_pm1

SOURCE = "Tu et al., AdaBin, ECCV 2022, arXiv:2208.08084"


class AdabinWeight(WeightBinarizer):
    """Mean of each filter plus or minus its deviation."""

    source: ClassVar[str] = SOURCE
    plane_count = 2

    def __init__(self, *, estimator: Estimator, epsilon: Annotated[float, Field(gt=0)] = 1e-12) -> None:
        super().__init__()
        self.estimator = estimator
        self.epsilon = epsilon

    def planes(self, weight: Tensor) -> list[Plane]:
        rows = weight.flatten(1)
        centre = rows.mean(dim=1, keepdim=True)
        # A filter of equal weights has no deviation, and the root no derivative there.
        distance = (rows - centre).square().mean(dim=1, keepdim=True).clamp(min=self.epsilon).sqrt()
        pm1 = self.estimator(((rows - centre) / distance).reshape(weight.shape))
        return [Plane(pm1, distance.squeeze(1)), Plane(torch.ones_like(weight), centre.squeeze(1))]


class AdabinInput(InputBinarizer):
    """Learned centre plus or minus a learned distance.

    They start at 0 and 1 as in the paper or, with `fit`, at the mean and deviation of the first batch: what a
    pretrained network sends into its layers is neither centred nor of unit deviation.
    """

    source: ClassVar[str] = SOURCE

    def __init__(self, channels: int, *, estimator: Estimator, fit: bool = True) -> None:
        super().__init__(channels)
        self.estimator = estimator
        self.fit = fit
        self.centre = nn.Parameter(torch.zeros(()))
        self.distance = nn.Parameter(torch.ones(()))

    @property
    def positive_distance(self) -> Tensor:
        """The distance as it is used: whatever the parameter's sign, above 0."""
        return self.distance.abs().clamp(min=1e-12)

    def planes(self, x: Tensor) -> list[Plane]:
        through = self.estimator((x - self.centre) / self.positive_distance)
        # The bits are those of x >= b, as the packed program has them; the quotient may round to another side.
        pm1 = through + (sign_pm1(x, self.centre) - through).detach()
        return [Plane(pm1, self.positive_distance), Plane(torch.ones_like(x), self.centre)]

    def encoder(self) -> Encoder:
        centre = self.centre.detach().float()
        never = torch.full_like(centre, torch.inf)
        scale = torch.stack([self.positive_distance.detach(), centre])
        start = torch.tensor([[False], [True]], device=centre.device)
        return Encoder(torch.stack([centre, never]).reshape(2, 1, 1), start, scale)

    def relaxed(self, x: Tensor) -> Tensor:
        centre, distance = self.centre.detach(), self.positive_distance.detach()
        return hardtanh((x - centre) / distance) * distance + centre

    def forward(self, x: Tensor) -> Tensor:
        return _TwoValues.apply(x, self.centre, self.positive_distance, self.estimator)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.fit:
            self.centre.copy_(x.mean())
            self.distance.copy_(x.std(correction=0))


class _TwoValues(torch.autograd.Function):
    """The sum of both planes with few sweeps over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, distance: Tensor, estimator: Estimator) -> Tensor:
        y = sign_pm1(x, centre).mul_(distance).add_(centre)
        ctx.save_for_backward(x, y, centre, distance)
        ctx.estimator = estimator
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, y, centre, distance = ctx.saved_tensors
        u = (x - centre).div_(distance)
        inner = ctx.estimator.gradient(u, grad)
        total = grad.sum()
        signs = (inner_product(grad, y) - centre * total) / distance
        return inner, total - inner.sum(), signs - inner_product(inner, u), None
