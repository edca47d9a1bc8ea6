"""Sign with the gradient of the sample divided by its own deviation, as ReCU, RBNN and BiPer train their inputs.

u_n = x_n / s_n,   s_n^2 = var x_n + eps over all axes of sample n, unbiased            x^ = sign(u) = sign(x)

g_x = h / s_n - (x - mean x_n) sum(h x) / (s_n^3 (K - 1)),   h = the estimator's gradient at u,   K values a sample

A deviation is positive, so the division changes no sign: it is done in the backward pass only, and nothing of it is
left at run time. RBNN subtracts the sample's mean as well, which would have to be measured for every image at run time;
it is left out here, in training as in the packed program, and the batch norm in front centres each channel instead.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.sign import SignInput
from bnnconvert.estimators.base import Estimator


class StandardizedSignInput(SignInput):
    """Sign whose surrogate gradient sees each sample in units of its own deviation."""

    source: ClassVar[str] = "Xu et al., ReCU, ICCV 2021, arXiv:2103.12369"

    def __init__(self, channels: int, *, estimator: Estimator, epsilon: Annotated[float, Field(gt=0)] = 1e-5) -> None:
        super().__init__(channels, estimator=_PerSample(estimator, epsilon))


class _PerSample(Estimator):
    source: ClassVar[str] = StandardizedSignInput.source

    def __init__(self, estimator: Estimator, epsilon: float) -> None:
        super().__init__()
        self.estimator, self.epsilon = estimator, epsilon

    def gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        shape = x.permute(0, 2, 3, 1).shape if last else x.shape
        # Samples as rows in the order of memory, and sums of powers: far faster on a CPU than torch.var over axes.
        x, grad = ((t.permute(0, 2, 3, 1) if last else t).flatten(1) for t in (x, grad))
        count, spare = x.shape[1], max(x.shape[1] - 1, 1)
        exact = torch.promote_types(x.dtype, torch.float32)
        mean = x.mean(dim=1, keepdim=True, dtype=exact)
        power = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=exact).square()
        variance = ((power - count * mean.square()) / spare).clamp(min=0)
        inverse = (variance + self.epsilon).rsqrt().to(x.dtype)
        mean = mean.to(x.dtype)
        inner = self.estimator.gradient(x * inverse, grad)
        pull = (inner * x).sum(dim=1, keepdim=True) * (inverse.pow(3) / spare)
        # h / s - (x - m) p in two sweeps: h / s + m p, then - x p
        result = torch.addcmul(mean * pull, inner, inverse).addcmul_(x, pull, value=-1).view(shape)
        return result.permute(0, 3, 1, 2) if last else result
