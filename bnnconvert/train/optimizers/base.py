"""What an optimizer of a recipe is: one of torch's kind that says where it is from and what it can train."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bnnconvert.binarizers.base import WeightBinarizer

Groups = Iterable[dict[str, Any]]
Pace = Annotated[float, Field(ge=0, lt=1)]
"""Share of a running mean that a step keeps."""


class RecipeOptimizer(torch.optim.Optimizer):
    """Base of all rows. Each group has a `kind`; `binary` says whether its latent weights are binary in this stage.

    All that the rest of a run depends on is in `state` or in the groups, so that a checkpoint holds it.
    """

    source: ClassVar[str]
    evaluations: ClassVar[int] = 1
    """Calls of `step` that one training step needs, each with a new gradient of the same batch."""

    @classmethod
    def obstacle(cls, binarizer: WeightBinarizer, weight: Tensor) -> str | None:
        """Why it cannot train a latent weight that is binarized so, or None. Shapes: weight (O, ...)."""
        return None
