"""Starting values for a network that is to forget what it has learned."""

import math

import torch
from torch import nn

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.estimators.base import Estimator
from bnnconvert.gains.base import Gain
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.branches import BranchMerge, SoftGate
from bnnconvert.layers.channel_scale import ChannelScale
from bnnconvert.layers.maxout import Maxout
from bnnconvert.layers.rprelu import RPReLU

_STARTS_ITSELF = (
    WeightBinarizer,
    InputBinarizer,
    Estimator,
    Gain,
    BranchMerge,
    ChannelScale,
    Maxout,
    RPReLU,
    SoftGate,
)
"""What the conversion has put in has learned nothing yet."""


@torch.no_grad()
def start_anew(network: nn.Module) -> None:
    """Draw all parameters anew from torch's generator, as their layers would; binary layers as the float ones.

    Raises: UsageError naming a module with parameters that does not know how to begin.
    """
    fresh = {inner for module in network.modules() if isinstance(module, _STARTS_ITSELF) for inner in module.modules()}
    for path, module in network.named_modules():
        if module in fresh:
            continue
        if isinstance(module, BinaryLayer):
            _reset(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
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
    if layer.gain is not None:
        layer.gain.calibrate(layer.weight_binarizer.relaxed(layer.weight))
