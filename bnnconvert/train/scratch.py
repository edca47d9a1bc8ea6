"""Starting values for a network that is to forget what it has learned."""

import math

import torch
from torch import nn

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.estimators.base import Estimator
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.rprelu import RPReLU

_STARTS_ITSELF = (WeightBinarizer, InputBinarizer, Estimator, RPReLU)
"""What the conversion has put in has learned nothing yet."""


@torch.no_grad()
def start_anew(network: nn.Module) -> None:
    """Draw all parameters anew from torch's generator, as their layers would; binary layers as the float ones.

    Raises: UsageError naming a module with parameters that does not know how to begin.
    """
    for path, module in network.named_modules():
        if isinstance(module, BinaryLayer):
            _reset(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)) and not isinstance(module, _STARTS_ITSELF):
            raise UsageError(
                f"training.start: {path or 'the model'} has parameters and no reset_parameters(), so it cannot start "
                "from scratch; use 'teacher'."
            )


def _reset(layer: BinaryLayer) -> None:
    """Weight and bias as torch starts convolutions and linear layers."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound)
    layer.weight_binarizer.calibrate(layer.weight)
