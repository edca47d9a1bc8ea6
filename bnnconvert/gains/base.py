"""What a gain is: a factor on a binary layer's output that the layer's planes cannot express.

    y = gain(x, map(x^, w^)) + bias          x the layer's float input, gain a factor per sample, channel or pixel

It is an ordinary module of float operations, and the packed program carries it as such.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

Operand = Literal["weights", "inputs"]


@dataclass(frozen=True, kw_only=True)
class GainSite:
    """The layer that a gain belongs to; a linear layer has no kernel and no size.

    Shapes: kernel, stride, padding, dilation and the output's `size` are (height, width).
    """

    path: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    size: tuple[int, ...] = ()
    has_binary_inputs: bool = True

    def per_channel(self, values: Tensor) -> Tensor:
        """Values per output channel, viewed so that they broadcast over the layer's output. Shapes: (O,)."""
        return values.reshape(-1, *(1,) * len(self.kernel))


class Gain(nn.Module, ABC):
    """A factor on the output of one binary layer. A row takes the layer's `site` in its constructor."""

    source: ClassVar[str]
    unpackable: ClassVar[str | None] = None
    """Why layers with this row can be trained and not exported; None where they can be."""
    stands_for: ClassVar[Operand | None] = None
    """The operand whose size the factor restores; it is left out in stages in which that operand is float."""

    def __init__(self, *, site: GainSite) -> None:
        super().__init__()
        self.site = site

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Output `y` of the layer times the factor; `x` is the layer's float input.

        Shapes: x (N, C, H, W), y (N, O, H', W'), or for a linear layer (N, I) and (N, O).
        """

    def calibrate(self, weight: Tensor) -> None:
        """Set starting values from the latent weight, when it is converted and when a stage makes it binary."""

    def deployed(self) -> nn.Module:
        """The same function, bit for bit, as the packed program carries it."""
        return self
