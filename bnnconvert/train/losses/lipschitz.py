"""Defensive quantization: keep each layer from amplifying a disturbance, by rows or columns that are orthonormal.

L = sum over layers of  ||M M' - I||^2 / 2,   M the weight as (O, n), or its transpose if that has fewer rows

The paper has W' W in every case; with fewer rows than columns that can never be I, so the smaller Gram matrix is taken.
The weight is the one that the layer multiplies with: with its scale, or the term would only fight the latent weight.
The loss's weight is the paper's beta.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnnconvert.layers.base import BinaryLayer
from bnnconvert.train.losses.base import Loss, Outputs


class Lipschitz(Loss):
    """Distance of the smaller Gram matrix of each weight, binary or float, from the identity."""

    source: ClassVar[str] = "Lin et al., Defensive Quantization, ICLR 2019, arXiv:1904.08444"
    needs_teacher: ClassVar[bool] = False

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def bind(self, student: nn.Module) -> None:
        self.layers = [m for m in student.modules() if isinstance(m, BinaryLayer | nn.Conv2d | nn.Linear)]

    def close(self) -> None:
        self.layers.clear()

    def __call__(self, outputs: Outputs) -> Tensor:
        return torch.stack([_term(layer) for layer in self.layers]).sum()


def _term(layer: nn.Module) -> Tensor:
    weight = layer.effective_weight() if isinstance(layer, BinaryLayer) else layer.weight
    assert isinstance(weight, Tensor)
    rows = weight.flatten(1).float()
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum() / 2
