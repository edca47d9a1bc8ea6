"""ABC-Net: several binary bases per weight, several learned thresholds per activation.

weights   V = W - mean W,   B_m = sign(V + u_m std W),   u_m = -1 + 2 (m - 1) / (M - 1), 0 for M = 1
          W^ = sum_m a_m B_m,   a = argmin ||W - sum_m a_m B_m||^2        mean, std and a over the layer, or per filter
          g_W = sum_m a_m g, with a, mean and std as constants

inputs    x^ = sum_n b_n A_n,   A_n = +1 where h_n >= 1/2, else -1,   h_n = clip(x + v_n, 0, 1)
          with 1{n} = 1{0 <= x + v_n <= 1}
          g_x = sum_n b_n g 1{n}     g_v_n = sum of b_n g 1{n}     g_b_n = sum of g A_n

Every A_n compares x with 1/2 - v_n. The paper learns v and b from where its user puts them; here they start at the
input's quantiles, with b = argmin ||x - sum_n b_n A_n||^2 there.
"""

from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane, WeightBinarizer
from bnnconvert.binarizers.codes import TINY, just_above, pass_gradient, sampled
from bnnconvert.estimators.base import sign_pm1

Bases = Annotated[int, Field(ge=1, le=8)]
ABOVE_ONE, BELOW_HALF = just_above(1.0), -just_above(-0.5)
"""The end of an open interval that holds 1, and what 1/2 is greater than."""
_SOURCE = "Lin et al., ABC-Net, NeurIPS 2017, arXiv:1711.11294"


class AbcWeight(WeightBinarizer):
    """Weighted sum of the signs of the shifted weight; bases that coincide share their scale."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, *, bases: Bases = 3, scales: Literal["layer", "filter"] = "layer") -> None:
        super().__init__()
        self.plane_count = bases
        self.per_filter = scales == "filter"

    def planes(self, weight: Tensor) -> list[Plane]:
        bases, scale = self._fitted(weight.detach())
        outputs = len(weight)
        return [Plane(b.reshape(weight.shape), s.expand(outputs)) for b, s in zip(bases, scale.unbind(-1), strict=True)]

    def forward(self, weight: Tensor) -> Tensor:
        bases, scale = self._fitted(weight.detach())
        value = torch.einsum("mon,om->on", bases, scale.expand(len(weight), -1)).view_as(weight)
        total = scale.sum(dim=-1).reshape(-1, *(1,) * (weight.dim() - 1))
        return pass_gradient(weight * total, value)

    def _fitted(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Bases and their least-squares scales. Shapes: (M, O, n), (O or 1, M)."""
        rows = weight.flatten(1) if self.per_filter else weight.reshape(1, -1)
        shifts = torch.linspace(-1, 1, self.plane_count) if self.plane_count > 1 else torch.zeros(1)
        centred = rows - rows.mean(dim=1, keepdim=True)
        deviation = rows.std(dim=1, keepdim=True, correction=0)
        bases = sign_pm1(centred + shifts.to(rows).reshape(-1, 1, 1) * deviation)
        return bases.reshape(self.plane_count, len(weight), -1), _least_squares(bases.transpose(0, 1), rows)


class AbcInput(InputBinarizer):
    """Weighted sum of signs at learned thresholds; they start at the input's quantiles."""

    source: ClassVar[str] = _SOURCE

    def __init__(self, channels: int, *, bases: Bases = 3) -> None:
        super().__init__(channels)
        self.shares = [(n + 1) / (bases + 1) for n in range(bases)]
        normal = torch.tensor([NormalDist().inv_cdf(share) for share in self.shares])
        self.shift = nn.Parameter(0.5 - normal)
        self.scale = nn.Parameter(torch.full((bases,), 1 / bases))

    def planes(self, x: Tensor) -> list[Plane]:
        thresholds = self._thresholds()
        return [Plane(sign_pm1(x.detach(), t), s) for t, s in zip(thresholds, self.scale.detach(), strict=True)]

    def encoder(self) -> Encoder:
        thresholds = self._thresholds().float().reshape(-1, 1, 1)
        start = torch.zeros(thresholds.shape[:2], dtype=torch.bool, device=thresholds.device)
        return Encoder(thresholds, start, self.scales())

    def scales(self) -> Tensor:
        return self.scale.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return _Staircases.apply(x, self.shift, self.scale)  # type: ignore[no-any-return, no-untyped-call]

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        sample = sampled(x)
        thresholds = sample.quantile(sample.new_tensor(self.shares))
        self.shift.copy_(0.5 - thresholds)
        bases = sign_pm1(sample.expand(len(thresholds), -1), thresholds[:, None])
        self.scale.copy_(_least_squares(bases[None], sample[None])[0])

    def _thresholds(self) -> Tensor:
        return 0.5 - self.shift.detach()


class _Staircases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, shift, scale)
        thresholds, heights = (0.5 - shift).to(x.dtype), (2 * scale).to(x.dtype)
        bit = torch.empty_like(x)
        y = torch.ge(x, thresholds[0], out=torch.empty_like(x)).mul_(heights[0]).sub_(heights.sum() / 2)
        for threshold, height in zip(thresholds[1:], heights[1:], strict=True):
            y.addcmul_(torch.ge(x, threshold, out=bit), height)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, shift, scale = ctx.saved_tensors
        grad_x, h, part = torch.zeros_like(grad), torch.empty_like(grad), torch.empty_like(grad)
        through, above = [], []
        for v, height in zip(shift.to(x.dtype), scale.to(x.dtype), strict=True):
            torch.add(x, v, out=h)
            inside = torch.ops.aten.hardtanh_backward(grad, h, -TINY, ABOVE_ONE, grad_input=part)
            through.append(inside.sum(dtype=shift.dtype))
            grad_x.addcmul_(inside, height)
            over = torch.ops.aten.threshold_backward(grad, h, BELOW_HALF, grad_input=part)
            above.append(over.sum(dtype=scale.dtype))
        return grad_x, torch.stack(through) * scale, 2 * torch.stack(above) - grad.sum(dtype=scale.dtype)


def _least_squares(bases: Tensor, target: Tensor) -> Tensor:
    """Scales a with the least ||target - sum_m a_m bases_m||, and among those the smallest.

    Shapes: bases (R, M, n) of ±1, target (R, n), scales (R, M).
    """
    count = bases.shape[-1]
    with torch.autocast(bases.device.type, enabled=False):  # half a precision has no inverse
        gram = bases @ bases.mT / count
        moments = (bases @ target[..., None])[..., 0] / count
        inverse: Tensor = torch.linalg.pinv(gram, rtol=1e-5, hermitian=True)
        return (inverse @ moments[..., None])[..., 0]
