"""Two signs of illness that a loss does not show: weights that flip without end, channels that carry no bit."""

from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import InputBinarizer
from bnnconvert.graph import evaluation
from bnnconvert.train.latent import binary_layers
from bnnconvert.values.inputs import Example, run_on
from bnnconvert.values.report import DeadChannels


def flip_ratios(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Share of weight signs that differ, by the layer's path."""
    return {path: (signs != before[path].to(signs.device)).float().mean().item() for path, signs in after.items()}


@torch.no_grad()
def dead_channels(student: nn.Module, x: Example) -> dict[str, DeadChannels]:
    """Input channels whose bits are the same for the whole batch, by the layer's path.

    Shapes: x (N, C, ...), the student's input, or a tuple of its inputs.
    """
    found: dict[str, DeadChannels] = {}

    def hook(path: str, binarizer: InputBinarizer) -> Any:
        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if path not in found:
                found[path] = _count(binarizer, inputs[0])

        return count

    handles = [
        layer.register_forward_pre_hook(hook(path, layer.input_binarizer))
        for path, layer in binary_layers(student)
        if layer.input_binarizer is not None
    ]
    try:
        with evaluation(student):
            run_on(student, x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _count(binarizer: InputBinarizer, x: Tensor) -> DeadChannels:
    """A channel is dead if none of its planes changes; which kind, its first plane says."""
    planes = torch.stack([plane.pm1.transpose(0, 1).flatten(1) for plane in binarizer.planes(x)])  # (P, C, n)
    dead = (planes.amin(dim=2) == planes.amax(dim=2)).all(dim=0)
    plus = dead & (planes[0, :, 0] > 0)
    return DeadChannels(len(dead), int((dead & ~plus).sum()), int(plus.sum()))
