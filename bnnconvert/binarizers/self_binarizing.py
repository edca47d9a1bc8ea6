"""Self-binarizing networks: tanh(nu x) for weights and inputs, with nu growing until it is sign.

stages with float operands   W^ = tanh(nu W),   x^ = tanh(nu x)          and their own derivatives
stages with binary ones      W^ = sign(W),      x^ = sign(x)             derivative nu (1 - tanh(nu .)^2)
nu = start (end / start)^min(progress / until, 1)

Neither has a scale; the batch norm behind the layer has. At nu = 1 a weight of a pretrained network, which is small, is
nearly itself. `until` is the share of the run at which the stage with signs begins, so that it finds nu at its end.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import Plane, WeightBinarizer
from bnnconvert.binarizers.sign import SignInput
from bnnconvert.estimators.tanh import Tanh

SOURCE = "Lahoud et al., Self-Binarizing Networks, 2019, arXiv:1902.00730"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class SelfBinarizingWeight(WeightBinarizer):
    """Tanh of the latent weight that sharpens to its sign."""

    source: ClassVar[str] = SOURCE

    def __init__(self, *, start: Positive = 1.0, end: Positive = 1000.0, until: Share = 1.0) -> None:
        super().__init__()
        self.tanh = Tanh(start=start, end=end, until=until)

    def planes(self, weight: Tensor) -> list[Plane]:
        return [Plane(self.tanh(weight))]

    def relaxed(self, weight: Tensor) -> Tensor:
        return self.tanh.soft(weight)


class SelfBinarizingInput(SignInput):
    """Tanh of the activation that sharpens to its sign."""

    source: ClassVar[str] = SOURCE

    def __init__(self, channels: int, *, start: Positive = 1.0, end: Positive = 1000.0, until: Share = 1.0) -> None:
        super().__init__(channels, estimator=Tanh(start=start, end=end, until=until))

    def relaxed(self, x: Tensor) -> Tensor:
        assert isinstance(self.estimator, Tanh)
        return self.estimator.soft(x)
