"""DSQ at one bit: two levels l = c - h and u = c + h, trained through one tanh segment between them.

v    = clip((x - c) / h, -1, 1),   f(v) = s tanh(k v),   s = 1 / (1 - a),   k = ln(2 / a - 1) / 2,   so f(±1) = ±1
x^   = c + h sign(x - c)           h and a learned, one each per operand; c learned for inputs, 0 for weights

backward: that of c + h f(v), with sign(x - c) for the value of f; inside |v| <= 1
  g_x = g f',   g_c = sum g (1 - f'),   g_h = sum g (sign - v f'),   f' = s k (1 - tanh(k v)^2)
  g_a = h sum g (s^2 tanh(k v) - s (1 - tanh(k v)^2) v / (a (2 - a)))
and outside g_x = g_a = 0, g_c = sum g, g_h = sum g sign.

The distance a from sign is kept in (0, 1/2): a = sigmoid(sharpness) / 2. The two levels of an input are the signs times
h and a plane of +1 times c. Weights are symmetric, c = 0: their offset would ask for the sum of every window at run
time.
"""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import hardtanh

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, WeightBinarizer, sign_encoder
from bnnconvert.channels import inner_product
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.estimators.dsq import Dsq

SOURCE = "Gong et al., Differentiable Soft Quantization, ICCV 2019, arXiv:1908.05033"
Distance = Annotated[float, Field(gt=0, lt=0.5)]


class DsqWeight(WeightBinarizer):
    """Sign of the latent weight times a learned positive level per layer.

    The level starts at the largest magnitude, so that no weight lies outside, where it would have no gradient.
    """

    source: ClassVar[str] = SOURCE

    def __init__(self, *, alpha: Distance = 0.2) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones(()))
        self.sharpness = nn.Parameter(_sharpness(alpha))

    @property
    def estimator(self) -> Dsq:
        """The gradient of the signs as it stands."""
        return _as_estimator(self.level, self.sharpness)

    def planes(self, weight: Tensor) -> list[Plane]:
        level = _positive(self.level)
        soft = soft_sign(weight / level, _distance(self.sharpness))
        return [Plane(_Through.apply(soft, sign_pm1(weight)), level)]  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        self.level.copy_(weight.abs().max())


class DsqInput(InputBinarizer):
    """Two learned levels per layer; `offset = false` holds their middle at 0, and then one plane is enough.

    The levels start at the mean of the first batch plus or minus the mean distance from it, where their error is least.
    """

    source: ClassVar[str] = SOURCE
    centre: Tensor

    def __init__(self, channels: int, *, alpha: Distance = 0.2, offset: bool = True) -> None:
        super().__init__(channels)
        self.offset = offset
        if offset:
            self.centre = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("centre", torch.zeros(()))
        self.level = nn.Parameter(torch.ones(()))
        self.sharpness = nn.Parameter(_sharpness(alpha))

    @property
    def estimator(self) -> Dsq:
        """The gradient of the signs as it stands, around the centre."""
        return _as_estimator(self.level, self.sharpness)

    def planes(self, x: Tensor) -> list[Plane]:
        level = _positive(self.level)
        soft = soft_sign((x - self.centre) / level, _distance(self.sharpness))
        signs = Plane(_Through.apply(soft, sign_pm1(x, self.centre)), level)  # type: ignore[no-untyped-call]
        return [signs, Plane(torch.ones_like(x), self.centre)] if self.offset else [signs]

    def encoder(self) -> Encoder:
        one = sign_encoder(self.centre.reshape(1))
        level = _positive(self.level).detach().reshape(1)
        if not self.offset:
            return Encoder(one.thresholds, one.start, level)
        never = torch.full_like(one.thresholds, torch.inf)
        scale = torch.cat([level, self.centre.detach().reshape(1)])
        return Encoder(torch.cat([one.thresholds, never]), torch.cat([one.start, ~one.start]), scale)

    def relaxed(self, x: Tensor) -> Tensor:
        centre, level = self.centre.detach(), _positive(self.level).detach()
        return hardtanh((x - centre) / level) * level + centre

    def forward(self, x: Tensor) -> Tensor:
        return _TwoLevels.apply(x, self.centre, _positive(self.level), _distance(self.sharpness))  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        if self.offset:
            self.centre.copy_(x.mean())
        self.level.copy_((x - self.centre).abs().mean())


def soft_sign(v: Tensor, alpha: Tensor) -> Tensor:
    """The tanh segment over [-1, 1], which ends at ±1; constant beyond."""
    return torch.tanh(hardtanh(v) * (0.5 * torch.log(2 / alpha - 1))) / (1 - alpha)


def _as_estimator(level: Tensor, sharpness: Tensor) -> Dsq:
    return Dsq(alpha=_distance(sharpness).item(), limit=_positive(level).item())


def _sharpness(alpha: float) -> Tensor:
    return torch.tensor(math.log(2 * alpha / (1 - 2 * alpha)))


def _distance(sharpness: Tensor) -> Tensor:
    return sharpness.sigmoid().clamp(min=1e-6) / 2


def _positive(level: Tensor) -> Tensor:
    return level.abs().clamp(min=1e-12)


class _Through(torch.autograd.Function):
    """Signs, with their gradient going to the soft sign."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, pm1: Tensor) -> Tensor:
        return pm1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _TwoLevels(torch.autograd.Function):
    """The sum of an input's planes with few sweeps over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, level: Tensor, alpha: Tensor) -> Tensor:
        y = sign_pm1(x, centre).mul_(level).add_(centre)
        ctx.save_for_backward(x, y, centre, level, alpha)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y, centre, level, alpha = ctx.saved_tensors
        gain, k = 1 / (1 - alpha), 0.5 * torch.log(2 / alpha - 1)
        v = (x - centre).div_(level)
        inside = torch.ops.aten.hardtanh_backward(grad, v, -_ONE, _ONE)
        curve = (v * k).tanh_()
        falling = torch.ops.aten.tanh_backward(inside, curve)  # g (1 - tanh^2)
        slanted, bent = inner_product(falling, v), inner_product(inside, curve)
        by_alpha = level * (gain.square() * bent - gain * slanted / (alpha * (2 - alpha)))
        inner, total = falling.mul_(gain * k), grad.sum()
        signs = (inner_product(grad, y) - centre * total) / level
        return inner, total - inner.sum(), signs - gain * k * slanted, by_alpha


_ONE = float(torch.nextafter(torch.tensor(1.0), torch.tensor(math.inf)))
"""hardtanh_backward masks the open interval; one step above 1 closes it."""
