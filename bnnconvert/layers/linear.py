"""Binary fully connected layer: the one trainable product that every method shares."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.gains.base import Gain
from bnnconvert.layers.base import BinaryLayer, parameters_of


class BinaryLinear(BinaryLayer):
    """Product of planes.

    Shapes: x (N, ..., I), weight (O, I), y (N, ..., O).
    """

    kind: ClassVar[str] = "linear"

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        *,
        weight_binarizer: WeightBinarizer,
        input_binarizer: InputBinarizer | None,
        gain: Gain | None = None,
    ) -> "BinaryLinear":
        """The binary twin of a float linear layer, sharing its parameters."""
        weight, bias = parameters_of(linear)
        return cls(weight, bias, weight_binarizer=weight_binarizer, input_binarizer=input_binarizer, gain=gain)

    def linear_map(self, x: Tensor, weight: Tensor, *, one: float = 1.0) -> Tensor:
        return F.linear(x, weight)

    def windows(self, x: Tensor, *, one: float = 1.0) -> Tensor:
        return x.flatten(1, -2).mT[:, None] if x.dim() > 2 else x[:, None, :, None]

    def positions(self, y: Tensor) -> Tensor:
        return self.windows(y)

    def from_positions(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, 0].mT.reshape(*x.shape[:-1], -1)

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        return values

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"
