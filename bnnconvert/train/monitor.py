"""Two signs of illness that a loss does not show: weights that flip without end, channels that carry no bit."""

from typing import Any

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import InputBinarizer
from bnnconvert.train.latent import binary_layers
from bnnconvert.values.report import DeadChannels


def flip_ratios(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Share of weight signs that differ, by the layer's path."""
    return {path: (signs != before[path].to(signs.device)).float().mean().item() for path, signs in after.items()}


@torch.no_grad()
def dead_channels(student: nn.Module, x: Tensor) -> dict[str, DeadChannels]:
    """Input channels whose sign is the same for the whole batch, by the layer's path; each plane counts.

    Shapes: x (N, C, ...), the student's input.
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
    was_training = student.training
    try:
        student.eval()(x)
    finally:
        student.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _count(binarizer: InputBinarizer, x: Tensor) -> DeadChannels:
    minus = plus = channels = 0
    for plane in binarizer.planes(x):
        values = plane.pm1.transpose(0, 1).flatten(1)
        channels += values.shape[0]
        minus += int((values.amax(dim=1) < 0).sum())
        plus += int((values.amin(dim=1) > 0).sum())
    return DeadChannels(channels, minus, plus)
