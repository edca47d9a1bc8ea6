"""LAB, loss-aware binarization: the scale of a layer weighs each weight by the curvature of the loss.

    d = sqrt(v) + 1e-8,   alpha = sum_i d_i |W_i| / sum_i d_i   over the layer,   W^ = alpha sign(W)
    v <- b2 v + (1 - b2) g^2,   g the gradient with respect to W^
    g_W = g   (alpha is a constant); the latent weight is clipped to [-clip, clip] after each step

This minimises (W^ - W)' diag(d) (W^ - W) / 2, the proximal Newton step with Adam's second moments for the Hessian. As
in the authors' code v starts at 0 without a correction, where alpha = mean |W|, and a step sees the v of those before.
v is a buffer, so a student out of training has the alpha that it was evaluated with.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import LatentClip, Plane, WeightBinarizer
from bnnconvert.estimators.base import sign_pm1

_FLOOR = 1e-8


class LabWeight(WeightBinarizer):
    """Sign of the latent weight times a scale per layer, weighted by the gradient's second moments."""

    source: ClassVar[str] = "Hou et al., Loss-aware Binarization of Deep Networks, ICLR 2017, arXiv:1611.01600"
    moment: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        clip: LatentClip | None = 1.0,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.clip = clip
        self.register_buffer("moment", torch.zeros(shape))

    def planes(self, weight: Tensor) -> list[Plane]:
        with torch.no_grad():
            curvature = self.moment.sqrt().add_(_FLOOR)
            alpha = (curvature * weight.abs()).sum() / curvature.sum()
        pm1: Tensor = _Sign.apply(weight, alpha, self)  # type: ignore[no-untyped-call]
        return [Plane(pm1, alpha.expand(weight.shape[0]))]


class _Sign(torch.autograd.Function):
    """Sign whose backward pass notes the squared gradient of the scaled weight, and passes it on without the scale."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha: Tensor, binarizer: LabWeight) -> Tensor:
        ctx.save_for_backward(alpha)
        ctx.binarizer = binarizer
        return sign_pm1(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (alpha,) = ctx.saved_tensors
        grad = grad / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
        binarizer = ctx.binarizer
        if binarizer.training:
            moment = binarizer.moment.lerp(grad.square(), 1 - binarizer.decay)
            # An overflow in half precision is a step that the optimizer skips, too.
            binarizer.moment.copy_(torch.where(moment.isfinite(), moment, binarizer.moment))
        return grad, None, None
