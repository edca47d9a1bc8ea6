"""Float layers in 8 bits, for what stays beside the binary layers: symmetric, the weights with a scale per output.

q = clamp(round(x f), -127, 127)        f: factor of the input, the same for all channels
y_o = (sum of q w^q_o) s_o + b_o        w_o = w^q_o max|w_o| / 127,   s_o = max|w_o| / (127 f)
"""

import torch
from torch import Tensor, nn

from bnnconvert.bits import MAX_BYTES
from bnnconvert.layers import operators

LARGEST = 127


class Int8Layer(nn.Module):
    """What convolution and linear layer share; made from a trained layer and not trainable."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, factor: float) -> None:
        super().__init__()
        self.factor = factor
        rows = layer.weight.detach().float()
        step = rows.flatten(1).abs().amax(1) / LARGEST
        step = torch.where(step > 0, step, torch.ones_like(step))
        self.register_buffer("weight", (rows / step.reshape(-1, *(1,) * (rows.dim() - 1))).round().to(torch.int8))
        self.register_buffer("scale", (step / factor).unsqueeze(0))
        bias = torch.zeros_like(step) if layer.bias is None else layer.bias.detach().float().clone()
        self.register_buffer("bias", bias)


class Int8Conv2d(Int8Layer):
    """Convolution in 8 bits. Shapes: (N, C, H, W) -> (N, O, H', W')."""

    def __init__(self, layer: nn.Conv2d, factor: float) -> None:
        super().__init__(layer, factor)
        assert not isinstance(layer.padding, str)
        self.stride, self.padding, self.dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        """Float output."""
        q = operators.quantize(x, self.factor)
        acc = operators.int8_conv2d(q, self.weight, self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = operators.affine(acc, self.scale, self.bias, 1)
        return y


class Int8Linear(Int8Layer):
    """Linear layer in 8 bits. Shapes: (N, ..., I) -> (N, ..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Float output."""
        acc = operators.int8_linear(operators.quantize(x, self.factor), self.weight)
        y: Tensor = operators.affine(acc, self.scale, self.bias, -1)
        return y


def int8_layer(layer: nn.Module, factor: float) -> Int8Layer | None:
    """The 8-bit form of a layer, or None where it has none."""
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight[0].numel() > MAX_BYTES:
        return None
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return Int8Conv2d(layer, factor)
    return Int8Linear(layer, factor) if type(layer) is nn.Linear else None
