"""Gradients of few bits, simulated: what training on integer hardware does to a network, not how fast.

The gradient g of each binary layer's output becomes

    g^ = s floor(clip(g, -c, c) / s + u),   s = c / (2^(k-1) - 1),   u ~ U[0, 1)          stochastic rounding

c is searched anew every 100 steps: of max |g| 2^(-i/2), the one with the least deviation d = 1 - cos(g, g^), rounded
to nearest there. The layer's learning rate is multiplied by max(exp(-20 d), 0.1): the further the direction is off, the
smaller the step. Layers that stay float keep their gradients.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from bnnconvert.train.latent import binary_layers

SEARCH_STEPS, CANDIDATES = 100, 16
DECAY, LEAST = 20.0, 0.1


class GradientQuantizer(nn.Module):
    """Hooks on the student's binary layers until `close`; clips and deviations are buffers, for a checkpoint.

    Source: Zhu et al., Towards Unified INT8 Training for Convolutional Neural Network, CVPR 2020, arXiv:1912.12607
    """

    clips: Tensor
    deviations: Tensor

    def __init__(self, student: nn.Module, bits: int) -> None:
        super().__init__()
        self.levels = 2 ** (bits - 1) - 1
        self.paths = [path for path, _ in binary_layers(student)]
        self.register_buffer("clips", torch.zeros(len(self.paths)))
        self.register_buffer("deviations", torch.zeros(len(self.paths)))
        self.searching = False
        self.handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._hook(index)) for index, (_, layer) in enumerate(binary_layers(student))
        ]

    def begin_step(self, step: int) -> None:
        """Search for new clips in this step's backward pass if it is time."""
        self.searching = step % SEARCH_STEPS == 0

    def rates(self) -> dict[str, float]:
        """Factor of the learning rate by the layer's path."""
        return {path: rate_of(d) for path, d in zip(self.paths, self.deviations.tolist(), strict=True)}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def _hook(self, index: int) -> Any:
        def quantize(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
            if not (layer.training and torch.is_grad_enabled()):
                return None
            return _Quantize.apply(output, self, index)  # type: ignore[no-any-return, no-untyped-call]

        return quantize

    def quantized(self, grad: Tensor, index: int) -> Tensor:
        """The gradient of layer number `index` on its levels."""
        if self.searching:
            self.clips[index], self.deviations[index] = best_clip(grad, self.levels)
        clip = self.clips[index]
        step = (clip / self.levels).clamp(min=torch.finfo(clip.dtype).tiny)
        return grad.clamp(-clip, clip).div_(step).add_(torch.rand_like(grad)).floor_().mul_(step)


def rate_of(deviation: float) -> float:
    """Factor of the learning rate for a gradient whose direction deviates so much."""
    return max(math.exp(-DECAY * deviation), LEAST)


def best_clip(grad: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The clip with the least deviation, and that deviation: 1 minus the cosine of gradient and quantized gradient."""
    flat = grad.detach().flatten()
    clips = flat.abs().max() * 2.0 ** (-torch.arange(CANDIDATES, device=flat.device) / 2)
    steps = (clips / levels).clamp(min=torch.finfo(flat.dtype).tiny)
    deviations = torch.stack(
        [
            1 - F.cosine_similarity((flat.clamp(-clip, clip) / step).round_().mul_(step), flat, dim=0)
            for clip, step in zip(clips, steps, strict=True)
        ]
    )
    best = deviations.argmin()
    return clips[best], deviations[best].clamp(min=0)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, quantizer: GradientQuantizer, index: int) -> Tensor:
        ctx.quantizer, ctx.index = quantizer, index
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.quantizer.quantized(grad, ctx.index), None, None
