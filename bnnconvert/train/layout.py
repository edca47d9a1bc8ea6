"""Memory layout of a model's convolution weights; channels last is what CPU and GPU convolve fastest."""

import torch
from torch import nn


def use_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay every parameter with two axes of space out anew, in place; values and optimizers' references stay."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
