"""Circulant filters of CBCN: each learned 3x3 filter gives M filters, turned in steps of 360/M degrees.

W[(o, k), i] = rot_k(w[o, i]),   k = 0 .. M-1        rot_k shifts the ring of the 8 outer taps by 8k/M, clockwise
W^ = a_o sign(W),                a_o = mean|w_o|, a constant: turning changes neither signs nor magnitudes

backward (CBP), with m = the estimator's derivative of sign:
  g_w = a m sum_k rot_-k(g_W[k])

The M filters of a learned one stand side by side, so M orientations of a feature are neighbouring channels. With
`permute_inputs` the M input channels of a feature are turned along, (i, m) becoming (i, m + k): the method read as in
oriented response networks. Filters that are not 3x3 have nothing to turn and are binarized as they are.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from bnnconvert.binarizers.base import LatentClip, Plane, WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.estimators.base import Estimator

RING = (0, 1, 2, 5, 8, 7, 6, 3)
"""Outer taps of a 3x3 filter, clockwise from the top left."""


class CirculantWeight(WeightBinarizer):
    """Signs of a filter and its turned copies, times its mean magnitude."""

    source: ClassVar[str] = "Liu et al., Circulant Binary Convolutional Networks, CVPR 2019, arXiv:1910.10853"
    taps: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        estimator: Estimator,
        orientations: Literal[2, 4, 8] = 4,
        permute_inputs: bool = False,
        clip: LatentClip | None = None,
    ) -> None:
        super().__init__()
        self.estimator, self.clip = estimator, clip
        turns = shape[2:] == (3, 3)
        self.orientations, self.permute_inputs = (orientations, permute_inputs) if turns else (1, False)
        if shape[0] % self.orientations or (self.permute_inputs and shape[1] % self.orientations):
            raise UsageError(
                f"circulant: a layer of {shape[1]} inputs and {shape[0]} outputs has no {orientations} orientations of "
                "each feature; widen the network (rewrite 'widen') or keep the layer float."
            )
        self.copies = self.orientations
        self.register_buffer("taps", _turned_taps(orientations) if turns else None, persistent=False)

    def latent(self, weight: Tensor) -> Tensor:
        return weight[:: self.orientations]

    def planes(self, weight: Tensor) -> list[Plane]:
        alpha = weight.detach().abs().flatten(1).mean(dim=1)
        return [Plane(self._expanded(self.estimator(weight)), alpha.repeat_interleave(self.orientations))]

    def relaxed(self, weight: Tensor) -> Tensor:
        return self._expanded(weight)

    def _expanded(self, weight: Tensor) -> Tensor:
        """All orientations of the learned filters. Shapes: (O / M, I, 3, 3) -> (O, I, 3, 3)."""
        if self.taps is None:
            return weight
        turned = weight.flatten(2)[:, :, self.taps].transpose(1, 2)  # (O / M, M, I, 9)
        if self.permute_inputs:
            features = turned.reshape(*turned.shape[:2], -1, self.orientations, 9)
            turned = torch.stack([f.roll(k, dims=2) for k, f in enumerate(features.unbind(1))], 1).flatten(2, 3)
        return turned.reshape(-1, *weight.shape[1:])


def _turned_taps(orientations: int) -> Tensor:
    """For each orientation and tap, the tap of the learned filter that it takes. Shapes: (M, 9)."""
    taps = torch.arange(9).repeat(orientations, 1)
    ring = torch.tensor(RING)
    for k in range(orientations):
        taps[k, ring] = ring.roll(k * 8 // orientations)
    return taps
