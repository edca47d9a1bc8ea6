"""What a training loop does to binary layers between forward passes; for people's own loops too."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.estimators.base import Estimator
from bnnconvert.layers.base import BinaryLayer


def binary_layers(student: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """Each binary layer with its path; a layer that is called twice comes once."""
    return ((path, module) for path, module in student.named_modules() if isinstance(module, BinaryLayer))


@torch.no_grad()
def set_stage(student: nn.Module, *, weights: bool, inputs: bool) -> None:
    """Choose which operands are binary in every binary layer; weights that become so give new starting values."""
    for _, layer in binary_layers(student):
        if weights and not layer.weights_are_binary:
            layer.weight_binarizer.calibrate(layer.weight)
        layer.weights_are_binary, layer.inputs_are_binary = weights, inputs


def advance_schedules(student: nn.Module, progress: float) -> None:
    """Move the schedule of every estimator and binarizer to `progress`, the share of the run that is done."""
    for module in student.modules():
        if isinstance(module, Estimator | WeightBinarizer | InputBinarizer):
            module.advance(progress)


@torch.no_grad()
def clip_latent(student: nn.Module) -> None:
    """Clamp latent weights where the method asks for it; call after each optimizer step."""
    for _, layer in binary_layers(student):
        clip = layer.weight_binarizer.clip
        if clip is not None and layer.weights_are_binary:
            layer.weight.clamp_(-clip, clip)


@torch.no_grad()
def weight_signs(student: nn.Module) -> dict[str, Tensor]:
    """Signs of each layer's weight planes by path, True for +1. Shapes: (M, O, ...)."""
    return {path: torch.stack([p.pm1 > 0 for p in layer.weight_planes()]) for path, layer in binary_layers(student)}
