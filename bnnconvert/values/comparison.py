"""What a comparison of recipes finds: plain data that goes to files and comes back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bnnconvert.values.recipe import Published


class Record(BaseModel):
    """Base of all parts: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Conditions(Record):
    """What all recipes of one comparison have in common."""

    format: int = 1
    source: str
    """What the user typed."""
    source_sha256: str | None
    data: str
    epochs: int | None
    """None: each recipe's own."""
    seed: int
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    """Whether the students were compiled for their training."""


class Figures(Record):
    """What one recipe came to. Accuracies are shares of the test samples, in [0, 1]."""

    converted: float
    """Before the first step, batch norm re-estimated."""
    fine_tuned: float
    packed: float | None = None
    """None where the recipe cannot be exported."""
    agreement: float | None = None
    """Share of the test samples on which session and student agree."""
    samples: int
    unexplained_samples: int | None = None
    predicted_bytes: int | None = None
    tensor_bytes: int | None = None
    file_bytes: int | None = None
    epochs: int
    best_epoch: int
    held_out: float
    minutes: float
    step_ratio: float
    """Time of a training step, teacher included, over that of the float model's."""


class ComparedRecipe(Record):
    """One recipe of a comparison."""

    recipe: str
    recipe_sha256: str
    figures: Figures | None
    refusal: str | None = None
    """Why there are no figures, or no packed ones."""
    published: Published | None = None


class Comparison(Record):
    """Recipes under equal conditions."""

    conditions: Conditions
    float_accuracy: float
    float_bytes: int
    float_milliseconds: float
    """Of the float model in torch, one sample, one thread."""
    recipes: tuple[ComparedRecipe, ...]
    milliseconds: dict[str, float]
    """Of each packed file's session, one sample, one thread."""
