"""What a binarizer is: a map from a tensor to ±1 planes, each with a scale.

    x^ = sum_p scale[p] * pm1[p]        pm1[p] in {-1, +1}, carrying the method's surrogate gradient

Every low-bit quantizer of the literature has this form; an offset is a plane that is +1 everywhere.
The layers, the packed format and the kernels know planes only, so a method is one small file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import hardtanh

LatentClip = Annotated[float, Field(gt=0)]
"""What latent weights are clamped to, on either side of 0."""


@dataclass(frozen=True)
class Plane:
    """One ±1 tensor and its scale.

    Shapes: pm1 like the operand; scale () or, for weights, (O,); None means 1.
    """

    pm1: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True)
class Encoder:
    """An activation binarizer as deployed: each plane counts the thresholds at or below x.

        bit[p, c] = start[p, c] xor (number of t with thresholds[p, c, t] <= x) is odd

    One threshold at 0 with start 0 is the sign; more thresholds make any piecewise-constant quantizer.

    Shapes: thresholds (P, C or 1, T) float32, padded with +inf; start (P, C or 1) bool; scale (P,) float32.
    """

    thresholds: Tensor
    start: Tensor
    scale: Tensor


class WeightBinarizer(nn.Module, ABC):
    """Binarizes a latent weight, output channel first. Stored by the layer that owns the weight.

    A row that has parameters of its own takes the weight's `shape` in its constructor.
    """

    source: ClassVar[str]
    unpackable: ClassVar[str | None] = None
    """Why layers with this row can be trained and not exported; None where they can be."""
    clip: float | None = None
    """Latent weights are clamped to [-clip, clip] after each optimizer step; None leaves them alone."""
    plane_count: int = 1
    """Number of planes, for the plan: known before there is a weight."""
    copies: int = 1
    """Filters that come of each latent one."""
    choices: ClassVar[tuple[int, ...] | None] = None
    """Codes of which a weight has one, times a scale per filter; given such weights, the planes give them back.

    None where a method is more than that, so that its weights cannot be fitted layer by layer.
    """

    @abstractmethod
    def planes(self, weight: Tensor) -> list[Plane]:
        """Planes of the latent weight, of shape (O, ...); deployed as they are in evaluation mode."""

    def latent(self, weight: Tensor) -> Tensor:
        """The trained tensor for a float layer's weight: itself, or fewer filters where the method shares them."""
        return weight

    def relaxed(self, weight: Tensor) -> Tensor:
        """Float stand-in for the quantized weight in stages whose weights are not binary yet: the latent weight."""
        return weight

    def bias(self, bias: Tensor, *, binary: bool) -> Tensor:
        """What is added to the layer's output, once its weights are binary or before; most methods leave it float.

        Shapes: (O,).
        """
        return bias

    def calibrate(self, weight: Tensor) -> None:
        """Set starting values from the latent weight, when it is converted and when a stage makes it binary."""

    def advance(self, progress: float) -> None:
        """Move a schedule to `progress`, the share of the run that is done, in [0, 1]."""

    def after_step(self, weight: Tensor, *, binary: bool) -> None:
        """Look at the latent weight after an optimizer step of a stage in which it is binary, or not yet."""

    def forward(self, weight: Tensor) -> Tensor:
        """Quantized weight, sum of scaled planes; same shape as `weight`."""
        return _sum(self.planes(weight), weight.dim())


class InputBinarizer(nn.Module, ABC):
    """Binarizes the input of a layer. `channels` is the size of the input's channel axis (axis 1)."""

    source: ClassVar[str]
    unpackable: ClassVar[str | None] = None
    """Why layers with this row can be trained and not exported; None where they can be."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @abstractmethod
    def planes(self, x: Tensor) -> list[Plane]:
        """Planes of an activation of shape (N, C, ...)."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """The same map as thresholds, for the packed program."""

    def scales(self) -> Tensor:
        """Scale of each plane. Shapes: (P,)."""
        return self.encoder().scale

    def one(self) -> float:
        """What +1 in every plane stands for, as in a padding of ones."""
        return float(self.scales().sum())

    def clip_range(self) -> tuple[float, float] | None:
        """Ends of the clip that x^ steps along, where it is a map of each value alone; None where it is not."""
        return None

    def relaxed(self, x: Tensor) -> Tensor:
        """Float stand-in for the signs in stages whose inputs are not binary yet: clip(-1, x, 1)."""
        return hardtanh(x)

    def calibrate(self, x: Tensor) -> None:
        """Set data-dependent starting values from one batch; most methods have none."""

    def advance(self, progress: float) -> None:
        """Move a schedule to `progress`, the share of the run that is done, in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantized activation, sum of scaled planes; same shape as `x`."""
        return _sum(self.planes(x), x.dim())


class WindowInput(InputBinarizer):
    """Binarizes an input anew in each window of the kernel; its planes are what all windows have in common."""

    @abstractmethod
    def in_windows(self, x: Tensor, windows: Callable[[Tensor], Tensor], *, pads_ones: bool) -> Tensor:
        """Quantized windows of `x`, which `windows` makes of any such tensor, padded with zeros; without a gradient.

        Shapes: x (N, C, ...), windows (N, G, n, positions).
        """

    @abstractmethod
    def passed(self, x: Tensor) -> Tensor:
        """`x` with the gradient that it gets from a layer's map of it, straight through the quantizer."""


def sign_encoder(threshold: Tensor) -> Encoder:
    """Encoder of one plane, +1 where x >= threshold.

    Shapes: threshold (C,) or (1,).
    """
    thresholds = threshold.detach().float().reshape(1, -1, 1)
    start = torch.zeros(thresholds.shape[:2], dtype=torch.bool, device=thresholds.device)
    return Encoder(thresholds, start, torch.ones(1, device=thresholds.device))


def per_output(scale: Tensor, dim: int) -> Tensor:
    """View a scale of shape () or (O,) so that it broadcasts over a tensor with O on its first of `dim` axes."""
    return scale.reshape(-1, *(1,) * (dim - 1)) if scale.dim() else scale


def _sum(planes: list[Plane], dim: int) -> Tensor:
    parts = [p.pm1 if p.scale is None else p.pm1 * per_output(p.scale, dim) for p in planes]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
