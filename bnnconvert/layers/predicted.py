"""Float layers in front of a ReLU, computed only where a 1-bit copy of them predicts a positive output.

    z = map(x, w) + b                           the batch norm behind the layer folded in
    s_o = map(sign(x - t), sign(w_o))           an integer; t_c is the mean of input channel c
    y_o = z_o where s_o >= limit_o, else 0      so relu(y) = relu(z) wherever no positive z is missed

The predictor's bits are those of t - x and -w, for the same products: a padding of zeros, which lies below thresholds
that are not negative, is then the padding of ones that binary layers have.

Source: Cao et al., SeerNet, CVPR 2019, whose predictor has 4 bits.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnnconvert.binarizers.base import Encoder, InputBinarizer, Plane
from bnnconvert.binarizers.sign import SignWeight
from bnnconvert.channels import wide
from bnnconvert.estimators.base import sign_pm1
from bnnconvert.estimators.identity import Identity
from bnnconvert.layers import operators
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.conv2d import BinaryConv2d
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.packed import Encode, PackedLayer

SOURCE = "Cao et al., SeerNet, CVPR 2019"


@dataclass(frozen=True)
class Predictor:
    """What calibration finds for one layer.

    Shapes: thresholds (C,), of the inputs; limits (O,), the sums from which on outputs are predicted to be positive.
    """

    thresholds: Tensor
    limits: Tensor


class BelowInput(InputBinarizer):
    """+1 where the input lies below its channel's threshold."""

    source: ClassVar[str] = SOURCE
    thresholds: Tensor

    def __init__(self, thresholds: Tensor) -> None:
        super().__init__(len(thresholds))
        self.register_buffer("thresholds", thresholds)

    def planes(self, x: Tensor) -> list[Plane]:
        return [Plane(-sign_pm1(x, wide(self.thresholds, x)))]

    def encoder(self) -> Encoder:
        start = torch.ones(1, self.channels, dtype=torch.bool)
        return Encoder(self.thresholds.reshape(1, -1, 1), start, torch.ones(1))


class MaskedConv2d(nn.Module):
    """Convolution at the outputs that a mask names. Shapes: x (N, C, H, W), mask (N, O, H', W'), y as the mask."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str), "the planner has an obstacle for named padding"
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups = conv.groups
        _take_parameters(self, conv)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Float output."""
        places = (self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = operators.masked_conv2d(x, mask, self.weight, self.bias, *places)
        return y


class MaskedLinear(nn.Module):
    """Linear layer at the outputs that a mask names. Shapes: x (N, I), mask (N, O), y as the mask."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        _take_parameters(self, linear)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Float output."""
        y: Tensor = operators.masked_linear(x, mask, self.weight, self.bias)
        return y


def _take_parameters(module: nn.Module, layer: nn.Conv2d | nn.Linear) -> None:
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    module.register_buffer("weight", layer.weight.detach())
    module.register_buffer("bias", bias.detach())


class PredictedLayer(PackedLayer):
    """Holder of `predictor`, `mask` and `map`; lives at the path of the layer that it replaces.

    `predictor` gives the sums s of an input, `mask` compares them with the limits, `map` reads the input and the mask.
    """

    predictor: BinaryLayer
    mask: Encode
    map: MaskedConv2d | MaskedLinear

    def __init__(self, layer: nn.Conv2d | nn.Linear, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = one_bit_copy(layer, predictor.thresholds)
        limits = predictor.limits.float().reshape(1, -1, 1)
        self.mask = Encode(limits, torch.zeros(limits.shape[:2], dtype=torch.bool))
        self.map = MaskedConv2d(layer) if isinstance(layer, nn.Conv2d) else MaskedLinear(layer)


def folded(layer: nn.Conv2d | nn.Linear, norm: nn.Module | None) -> nn.Conv2d | nn.Linear:
    """A copy of a layer that has taken in the batch norm behind it, with its running statistics."""
    layer, norm = copy.deepcopy(layer).eval(), copy.deepcopy(norm)
    if norm is None:
        return layer
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    norm.eval()
    return fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)


def one_bit_copy(layer: nn.Conv2d | nn.Linear, thresholds: Tensor) -> BinaryLayer:
    """The layer that gives the sums s: signs of inputs against thresholds and of weights, no scale, no bias."""
    weight = nn.Parameter(-layer.weight.detach(), requires_grad=False)
    signs, inputs = SignWeight(estimator=Identity(), clip=None), BelowInput(thresholds)
    if isinstance(layer, nn.Linear):
        return BinaryLinear(weight, None, weight_binarizer=signs, input_binarizer=inputs).eval()
    twin = BinaryConv2d.from_float(
        layer,
        weight_binarizer=signs,
        input_binarizer=inputs,
        pad_bit="one" if bool((thresholds >= 0).all()) else "zero",
    )
    twin.weight, twin.bias = weight, None
    return twin.eval()
