"""Regularized activation distributions: keep what reaches each sign from degenerating.

mu, sigma of a channel over (N, H, W), sigma = sqrt(biased variance + 1e-10), as they come to the input binarizer

    mismatch      mean_c relu(2 - |mu| - sigma)^2       nearly all inside [-1, 1]: hardtanh is a poor stand-in for sign
    saturation    mean_c relu(sigma - 4)^2              nearly all outside: no gradient
    degeneration  mean_c relu(mu^2 - sigma^2)           one sign dominates

L = mean over layers of the sum of the three. The constants are the authors' code's, which has the term with weight 2.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnnconvert.channels import channel_moments
from bnnconvert.errors import UsageError
from bnnconvert.train.latent import binary_layers
from bnnconvert.train.losses.base import Loss, Outputs


class Rad(Loss):
    """Penalties on the mean and deviation of each binary layer's input channels."""

    source: ClassVar[str] = "Ding et al., Regularizing Activation Distribution, CVPR 2019, arXiv:1904.02823"
    needs_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self.terms: list[Tensor] = []
        self.watching = False
        self.handles: list[RemovableHandle] = []

    def bind(self, student: nn.Module) -> None:
        layers = [layer for _, layer in binary_layers(student) if layer.input_binarizer is not None]
        if not layers:
            raise UsageError("training.losses: 'rad' is about binary inputs, and the student has none; leave it out.")
        self.handles = [layer.register_forward_pre_hook(self._see) for layer in layers]

    def begin_pass(self) -> None:
        self.watching = True
        self.terms.clear()

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.terms.clear()

    def _see(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Others run the student as well: calibration, batch norm's re-estimation, a step in which the term is over.
        if self.watching and layer.training and torch.is_grad_enabled():
            self.terms.append(_penalty(inputs[0].float()))

    def __call__(self, outputs: Outputs) -> Tensor:
        terms, self.terms, self.watching = self.terms, [], False
        return torch.stack(terms).mean() if terms else outputs.logits.new_zeros(())


def _penalty(x: Tensor) -> Tensor:
    """The three terms of one layer. Shapes: x (N, C, ...)."""
    mean, variance = channel_moments(x)
    variance = variance + 1e-10
    deviation = variance.sqrt()
    mismatch = (2 - mean.abs() - deviation).relu().square()
    saturation = (deviation - 4).relu().square()
    degeneration = (mean.square() - variance).relu()
    return (mismatch + saturation + degeneration).mean()
