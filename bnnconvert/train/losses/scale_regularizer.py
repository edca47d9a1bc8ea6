"""BNN+'s regulariser: pull the magnitude of each weight towards the learned scale of its filter.

    l1   L = sum | a_o - |W| |          dL/dW = sign(W) sign(|W| - a),    dL/da = sum sign(a - |W|)
    l2   L = sum ( a_o - |W| )^2        dL/dW = 2 (|W| - a) sign(W),      dL/da = 2 sum (a - |W|)

Summed over the weights of all layers with `learned-scale`, so its weight in a recipe is small. It takes the place of
weight decay, which would pull weights towards their decision boundary. Stages with float weights do without it: the
scale is not in use there.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnnconvert.binarizers.base import per_output
from bnnconvert.binarizers.learned_scale import LearnedScaleWeight
from bnnconvert.errors import UsageError
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses.base import Loss, Outputs


class ScaleRegularizer(Loss):
    """Distance of the weights' magnitudes from their scale, absolute or squared."""

    source: ClassVar[str] = "Darabi et al., BNN+: Improved Binary Network Training, 2018, arXiv:1812.11800"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, *, norm: Literal["l1", "l2"] = "l2") -> None:
        self.norm = norm
        self.layers: list[tuple[BinaryLayer, LearnedScaleWeight]] = []

    def bind(self, student: nn.Module) -> None:
        found = [(m, m.weight_binarizer) for m in student.modules() if isinstance(m, BinaryLayer)]
        self.layers = [(layer, b) for layer, b in found if isinstance(b, LearnedScaleWeight)]
        if not self.layers:
            raise UsageError(
                "training.losses: 'scale-regularizer' is about weights of 'learned-scale', and no layer has them; "
                "choose that weight binarizer or leave the loss out."
            )

    def __call__(self, outputs: Outputs) -> Tensor:
        terms = [outputs.logits.new_zeros((), dtype=torch.float)]
        for layer, binarizer in self.layers:
            if layer.weights_are_binary:
                scale = per_output(binarizer.scale.abs(), layer.weight.dim())
                distance = layer.weight.abs() - scale
                terms.append((distance.abs() if self.norm == "l1" else distance.square()).sum())
        return torch.stack(terms).sum()
