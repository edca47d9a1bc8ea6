"""A budget of bytes or accuracy, and the mix of widths that keeps to it: plain data."""

from dataclasses import asdict, dataclass
from typing import Any

from bnnconvert.values.recipe import Rule
from bnnconvert.values.sensitivity import Cost


@dataclass(frozen=True)
class Budget:
    """What a plan must keep to: a drop in points of accuracy, or a number of bytes."""

    kind: str
    limit: float


@dataclass(frozen=True)
class Choice:
    """One layer at one width, alone in the float network."""

    layer: str
    width: str
    bytes: int
    cost: Cost


@dataclass(frozen=True)
class Fitted:
    """The plan that a budget led to."""

    rules: tuple[Rule, ...]
    """What stands in front of the recipe's own rules."""
    widths: dict[str, str]
    choices: tuple[Choice, ...]
    cost: Cost
    """Of the whole student, batch norm re-estimated and nothing trained."""
    teacher_accuracy: float
    bytes: int
    """Of the artifact's tensors."""

    def to_json(self) -> dict[str, Any]:
        """What was measured and decided, as plain data."""
        return {
            "widths": self.widths,
            "bytes": self.bytes,
            "cost": asdict(self.cost),
            "teacher_accuracy": self.teacher_accuracy,
            "choices": [asdict(choice) for choice in self.choices],
        }
