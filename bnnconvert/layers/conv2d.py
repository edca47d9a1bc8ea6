"""Binary 2-D convolution: the one trainable convolution that every method shares."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.gains.base import Gain
from bnnconvert.layers.base import BinaryLayer, parameters_of


class BinaryConv2d(BinaryLayer):
    """Convolution of planes.

    Shapes: x (N, C, H, W), weight (O, C / groups, kh, kw), y (N, O, H', W').
    """

    kind: ClassVar[str] = "conv2d"

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        weight_binarizer: WeightBinarizer,
        input_binarizer: InputBinarizer | None,
        pad_bit: Literal["zero", "one"] = "zero",
        gain: Gain | None = None,
    ) -> None:
        super().__init__(weight, bias, weight_binarizer=weight_binarizer, input_binarizer=input_binarizer, gain=gain)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.pad_bit = pad_bit

    @classmethod
    def from_float(
        cls,
        conv: nn.Conv2d,
        *,
        weight_binarizer: WeightBinarizer,
        input_binarizer: InputBinarizer | None,
        pad_bit: Literal["zero", "one"] = "zero",
        gain: Gain | None = None,
    ) -> "BinaryConv2d":
        """The binary twin of a float convolution, sharing its parameters."""
        assert not isinstance(conv.padding, str), "the planner keeps convolutions with named padding float"
        weight, bias = parameters_of(conv)
        return cls(
            weight,
            bias,
            stride=_pair(conv.stride),
            padding=_pair(conv.padding),
            dilation=_pair(conv.dilation),
            groups=conv.groups,
            weight_binarizer=weight_binarizer,
            input_binarizer=input_binarizer,
            pad_bit=pad_bit,
            gain=gain,
        )

    @property
    def pads_ones(self) -> bool:
        return self.pad_bit == "one" and any(self.padding)

    def linear_map(self, x: Tensor, weight: Tensor, *, one: float = 1.0) -> Tensor:
        x, padding = self._padded(x, one)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, self.groups)

    def windows(self, x: Tensor, *, one: float = 1.0) -> Tensor:
        x, (high, wide) = self._padded(x, one)
        x = F.pad(x, (wide, wide, high, high)).contiguous()
        for axis, stride, dilation in zip((2, 3), self.stride, self.dilation, strict=True):
            x = x.unfold(axis, dilation * (self.weight.shape[axis] - 1) + 1, stride)[..., ::dilation]
        columns = x.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)  # one copy, several times as fast as F.unfold
        return self.positions(columns)

    def positions(self, y: Tensor) -> Tensor:
        y = y.flatten(2)
        return y.reshape(len(y), self.groups, -1, y.shape[2])

    def from_positions(self, y: Tensor, x: Tensor) -> Tensor:
        settings = zip(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return y.reshape(len(y), -1, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings))

    def _padded(self, x: Tensor, one: float) -> tuple[Tensor, tuple[int, int]]:
        """Input with its padding of ones, and the padding of zeros that is left to do."""
        if not self.pads_ones:
            return x, self.padding
        high, wide = self.padding
        return F.pad(x, (wide, wide, high, high), value=one), (0, 0)

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    def extra_repr(self) -> str:
        out, per_group, *kernel = self.weight.shape
        return (
            f"{per_group * self.groups}, {out}, kernel={tuple(kernel)}, stride={self.stride}, "
            f"padding={self.padding} of {self.pad_bit}, dilation={self.dilation}, groups={self.groups}"
        )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    first, second = value
    return first, second
