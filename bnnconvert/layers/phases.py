"""Transposed convolutions as convolutions, one for all phases of the stride that have equally many taps.

full[s q + a] = sum_j x[q - j] w[a + s j],  a + s j < k,  output = full[p : p + size]

Along an axis the first k mod s phases a have ceil(k / s) taps and the others floor(k / s).
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CONVOLUTIONS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ConvTranspose1d: nn.Conv1d,
    nn.ConvTranspose2d: nn.Conv2d,
    nn.ConvTranspose3d: nn.Conv3d,
}


@dataclass(frozen=True)
class Phases:
    """Neighbouring phases of one axis that have equally many taps."""

    first: int
    count: int
    taps: int


def phases_of(module: Transposed) -> list[tuple[Phases, ...]]:
    """What its convolutions compute along each axis, the last axis changing fastest; phases of more taps come first.

    One where the kernel is a multiple of the stride.
    """
    along = []
    for kernel, stride in zip(module.kernel_size, module.stride, strict=True):
        taps, more = divmod(kernel, stride)
        one = [Phases(more, stride - more, taps)]
        along.append([Phases(0, more, taps + 1), *one] if more else one)
    return list(itertools.product(*along))


def convolution_of(module: Transposed, phases: tuple[Phases, ...]) -> nn.Module:
    """The convolution that computes these phases of each axis, an output channel's side by side.

    Its input is padded by all taps but one, so that its first output is that of the first tap alone.
    """
    count, taps = math.prod(phase.count for phase in phases), tuple(phase.taps for phase in phases)
    settings: Any = {"padding": tuple(t - 1 for t in taps), "groups": module.groups}
    sizes = module.in_channels, module.out_channels * count
    made: Any = _CONVOLUTIONS[type(module)](*sizes, taps, bias=False, device="meta", **settings)
    made.weight = nn.Parameter(_filters(module.weight.detach(), module.groups, module.stride, phases))
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach().repeat_interleave(count))
    return made.train(module.training)  # type: ignore[no-any-return]


def _filters(weight: Tensor, groups: int, stride: tuple[int, ...], phases: tuple[Phases, ...]) -> Tensor:
    """Shapes: weight (G I, O, k, ...) -> (G O phases, I, taps, ...), taps in turned order."""
    axes = len(stride)
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    for axis, (step, phase) in enumerate(zip(stride, phases, strict=True)):
        at = 3 + 2 * axis
        rows = weight.narrow(at, phase.first, step * (phase.taps - 1) + phase.count)
        weight = rows.unfold(at, phase.count, step).movedim(-1, at).flip(at + 1)  # (..., phases, taps, k, ...)
    offsets, places = range(3, 3 + 2 * axes, 2), range(4, 4 + 2 * axes, 2)
    return weight.permute(0, 2, *offsets, 1, *places).flatten(0, 1 + axes).contiguous()
