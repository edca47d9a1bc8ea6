"""Refuse signs that carry no information: the same bit for whole channels, whatever the input."""

import torch
from torch import Tensor
from torch.fx import GraphModule

from bnnconvert.errors import RefusalError
from bnnconvert.graph import copy_sharing
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.values.recipe import Checks

CONSTANT = "its binary input would be constant, whatever the sample"
"""Why a layer stays float whose sign is dead while most others are alive."""


def check_signs(graph: GraphModule, probe: tuple[Tensor, ...], checks: Checks) -> tuple[tuple[str, ...], list[str]]:
    """Sentences about signs with a few constant channels, and the layers whose sign says nothing.

    Both are measured on `probe` with fresh batch-norm statistics. Few such layers are a matter of the model (what is
    made of a token alone, or of weights that are zero); many are one of the recipe.

    Raises: RefusalError where most signs say nothing, or the recipe wants none such.
    """
    dead = dead_shares(graph, probe)
    fatal = {path: share for path, share in dead.items() if share >= checks.dead_channels}
    layers = (layer for layer in graph.modules() if isinstance(layer, BinaryLayer))
    allowed = 0 if checks.dead_signs == "refuse" else sum(not layer.is_weight_only for layer in layers) // 2
    if len(fatal) > allowed:
        listed = ", ".join(f"{path} ({share:.0%} of its channels)" for path, share in fatal.items())
        raise RefusalError(
            f"Dead signs: the binary input of {listed} is constant on the probe input; put a batch norm in front "
            "(rewrite 'insert-batch-norm'), take the ReLU away (rewrite 'remove-relu'), or keep the layer float."
        )
    said = tuple(f"{path}: {share:.0%} of the input's channels are constant" for path, share in dead.items())
    return said, list(fatal)


def dead_shares(graph: GraphModule, probe: tuple[Tensor, ...]) -> dict[str, float]:
    """Share of constant channels of each sign that has any, by the layer's path.

    A copy of the student runs in training mode, as its first training step will: batch norm by the batch.
    """
    binarizers = [layer.input_binarizer for layer in graph.modules() if isinstance(layer, BinaryLayer)]
    if all(binarizer is None for binarizer in binarizers):  # signs of weights do not depend on a sample
        return {}
    calibrated = {p for binarizer in binarizers if binarizer is not None for p in binarizer.parameters()}
    trial = copy_sharing(graph, (p for p in graph.parameters() if p not in calibrated)).train()
    dead: dict[str, float] = {}
    for path, layer in trial.named_modules():
        if isinstance(layer, BinaryLayer) and layer.input_binarizer is not None:
            layer.register_forward_pre_hook(_note_dead(path, dead))
            if layer.weight_binarizer.plane_count == 1 and layer.input_binarizer.scales().numel() == 1:
                layer.training = False  # the same values without a scaled copy of the weights, which may be large
    with torch.no_grad():
        trial(*probe)
    return {path: share for path, share in dead.items() if share}


def _note_dead(path: str, dead: dict[str, float]):  # type: ignore[no-untyped-def]
    first: list[Tensor] = []
    constant: list[Tensor] = []

    def note(layer: BinaryLayer, inputs: tuple[Tensor, ...]) -> None:
        assert layer.input_binarizer is not None
        if not len(inputs[0]):  # what a detector has not found says nothing about a sign
            return
        if not first:
            layer.input_binarizer.calibrate(inputs[0])
        planes = layer.input_binarizer.planes(inputs[0])
        values = torch.cat([plane.pm1.transpose(0, 1).flatten(1) for plane in planes])
        if not first:
            first.append(values[:, :1].clone())
        # A layer that is called twice is dead where both calls say the same.
        constant.append((values == first[0]).all(dim=1).reshape(-1, inputs[0].shape[1]).all(dim=0))
        dead[path] = float(torch.stack(constant).all(dim=0).float().mean())

    return note
