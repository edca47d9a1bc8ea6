"""What a training loop does to binary layers between forward passes; for people's own loops too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.estimators.base import Estimator, sign_pm1
from bnnconvert.layers.base import BinaryLayer


def binary_layers(student: nn.Module) -> Iterator[tuple[str, BinaryLayer]]:
    """Each binary layer with its path; a layer that is called twice comes once."""
    return ((path, module) for path, module in student.named_modules() if isinstance(module, BinaryLayer))


@contextmanager
def planes_together(student: nn.Module) -> Iterator[None]:
    """Evaluation with one product in each layer, as in training, in place of one for each pair of planes.

    Equal within rounding, and for several bits many times as fast.
    """
    layers = [layer for _, layer in binary_layers(student)]
    for layer in layers:
        layer.planes_apart = False
    try:
        yield
    finally:
        for layer in layers:
            del layer.planes_apart


@torch.no_grad()
def set_stage(student: nn.Module, *, weights: bool | int, inputs: bool | int) -> None:
    """Choose which operands are binary in every binary layer, a number being for a relaxation of so many bits.

    Weights that become binary give new starting values.
    """
    for _, layer in binary_layers(student):
        if weights is True and not layer.weights_are_binary:
            layer.weight_binarizer.calibrate(layer.weight)
            if layer.gain is not None:
                layer.gain.calibrate(layer.weight_binarizer.relaxed(layer.weight))
        layer.weights_are_binary, layer.inputs_are_binary = weights is True, inputs is True
        layer.weight_bits = None if isinstance(weights, bool) else weights
        layer.input_bits = None if isinstance(inputs, bool) else inputs


def advance_schedules(student: nn.Module, progress: float) -> None:
    """Move the schedule of every estimator and binarizer to `progress`, the share of the run that is done."""
    for module in student.modules():
        if isinstance(module, Estimator | WeightBinarizer | InputBinarizer):
            module.advance(progress)


@torch.no_grad()
def clip_latent(student: nn.Module) -> None:
    """Put latent weights where the method and the stage want them; call after each optimizer step."""
    for _, layer in binary_layers(student):
        clip = layer.weight_binarizer.clip
        if clip is not None and layer.weights_are_binary:
            layer.weight.clamp_(-clip, clip)
        _hold(layer)
        layer.weight_binarizer.after_step(layer.weight, binary=layer.weights_are_binary)


@torch.no_grad()
def freeze_weights(student: nn.Module, share: float) -> None:
    """Set a share of each filter's weights, largest magnitude first, to plus or minus a level and hold them there.

    The level is the filter's mean magnitude when its first weights are frozen; those that are frozen stay so. A
    share of 0 lets all go.
    """
    for _, layer in binary_layers(student):
        if share == 0:
            layer.held = None
            continue
        rows = layer.weight.flatten(1)
        held = torch.zeros_like(rows) if layer.held is None else layer.held.flatten(1)
        level = held.abs().amax(dim=1, keepdim=True)
        # Not 0 for a filter of zeros, as that stands for a weight that is free.
        first = rows.abs().mean(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        level = torch.where(level > 0, level, first)
        magnitude = rows.abs().masked_fill(held != 0, torch.inf)
        chosen = magnitude.topk(round(share * rows.shape[1]), dim=1).indices
        values = torch.where(held != 0, held, sign_pm1(rows) * level)
        mask = torch.zeros_like(rows).scatter_(1, chosen, 1.0)
        layer.held = torch.empty_like(layer.weight).copy_((values * mask).view(layer.weight.shape))
        _hold(layer)


def held_weights(student: nn.Module) -> dict[str, Tensor]:
    """Frozen values by path, 0 for weights that are free; layers without any are left out."""
    return {path: layer.held for path, layer in binary_layers(student) if layer.held is not None}


def restore_held(student: nn.Module, held: dict[str, Tensor]) -> None:
    """Freeze what a checkpoint says."""
    for path, layer in binary_layers(student):
        layer.held = torch.empty_like(layer.weight.detach()).copy_(held[path]) if path in held else None


def _hold(layer: BinaryLayer) -> None:
    if layer.held is not None:
        layer.weight.copy_(torch.where(layer.held == 0, layer.weight, layer.held))


@torch.no_grad()
def weight_signs(student: nn.Module) -> dict[str, Tensor]:
    """Signs of each layer's weight planes by path, True for +1. Shapes: (M, O, ...)."""
    return {path: torch.stack([p.pm1 > 0 for p in layer.weight_planes()]) for path, layer in binary_layers(student)}
