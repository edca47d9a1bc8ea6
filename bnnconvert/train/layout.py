"""Memory layout of a model's convolution weights and gradients; channels last is what CPU and GPU convolve fastest."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Their backward passes give a gradient in the contiguous layout, which then spreads down the whole residual stream:
# hardtanh and additions keep the layout of the gradient, and batch norm is several times slower on mixed ones.
_FORGETFUL = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)


def use_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay every parameter with two axes of space out anew, in place; values and optimizers' references stay."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def keep_gradient_layout(model: nn.Module) -> list[RemovableHandle]:
    """Give gradients that leave a pool backwards the layout of its input; values stay. The handles take it off."""
    return [m.register_forward_pre_hook(_restore) for m in model.modules() if isinstance(m, _FORGETFUL)]


def _restore(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
    x = inputs[0]
    if (
        isinstance(x, Tensor)
        and x.requires_grad
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    ):
        x.register_hook(_channels_last)  # type: ignore[no-untyped-call]


def _channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)
