"""Embedding with a binary table: weight-only by nature, as what enters are numbers of rows."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.errors import RefusalError
from bnnconvert.layers.base import BinaryLayer


class BinaryEmbedding(BinaryLayer):
    """Rows of planes, each row with its own scale.

    Shapes: x (...) of numbers below V, weight (V, D), y (..., D).
    """

    kind: ClassVar[str] = "embedding"

    def __init__(self, weight: nn.Parameter, *, padding_row: int | None, weight_binarizer: WeightBinarizer) -> None:
        super().__init__(weight, None, weight_binarizer=weight_binarizer, input_binarizer=None)
        self.padding_row = padding_row

    @classmethod
    def from_float(cls, table: nn.Embedding, *, weight_binarizer: WeightBinarizer) -> "BinaryEmbedding":
        """The binary twin of a float table, sharing its weight."""
        assert isinstance(table.weight, nn.Parameter), "the planner keeps layers with computed weights float"
        return cls(table.weight, padding_row=table.padding_idx, weight_binarizer=weight_binarizer)

    def linear_map(self, x: Tensor, weight: Tensor, *, one: float = 1.0) -> Tensor:
        return F.embedding(x, weight, self.padding_row)

    def windows(self, x: Tensor, *, one: float = 1.0) -> Tensor:
        raise RefusalError("An embedding multiplies nothing that weights could be fitted to; keep it float.")

    def positions(self, y: Tensor) -> Tensor:
        return y.flatten(1, -2).mT[:, None]

    def from_positions(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, 0].mT.reshape(*x.shape, -1)

    def _exact(self, x: Tensor) -> Tensor:
        planes = self.weight_planes()
        tables = zip(planes, self.planes_scale(planes), strict=True)
        first, *more = (self.linear_map(x, plane.pm1 * scale[:, None]) for plane, scale in tables)
        y: Tensor = sum(more, start=first)
        return y

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        return values

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"
