"""Tensors of other ranks as images (N, C, H, W) and back, so that every layer on a channel axis is a convolution.

sequence  (N, C, L)     <-> (N, C, L, 1)
tokens    (N, T, C)     <-> (N, C, T, 1)
grid      (N, H, W, C)  <-> (N, C, H, W)
"""

from typing import Literal

from torch import Tensor, nn

Kind = Literal["sequence", "tokens", "grid"]


class View(nn.Module):
    """What both directions share."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def extra_repr(self) -> str:
        """The kind."""
        return self.kind


class ToImage(View):
    """View as an image. Shapes: x of the kind, y (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Channels second, four axes."""
        if self.kind == "grid":
            return x.permute(0, 3, 1, 2)
        return (x if self.kind == "sequence" else x.permute(0, 2, 1)).unsqueeze(3)


class FromImage(View):
    """View of an image as what it was. Shapes: x (N, C, H, W), y of the kind."""

    def forward(self, x: Tensor) -> Tensor:
        """The kind's axes, laid out as a linear layer's output is: the model may call `view` on it."""
        if self.kind == "sequence":
            return x.squeeze(3)
        y = x.permute(0, 2, 3, 1)
        return (y if self.kind == "grid" else y.squeeze(2)).contiguous()
