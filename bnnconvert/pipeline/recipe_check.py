"""A look at every name and option of a recipe before a model is touched."""

from typing import Any

from bnnconvert.binarizers import (
    EXAMPLE_SHAPE,
    INPUT_BINARIZERS,
    WEIGHT_BINARIZERS,
    build_input_binarizer,
    build_weight_binarizer,
)
from bnnconvert.binarizers.base import WeightBinarizer
from bnnconvert.errors import UsageError
from bnnconvert.gains import GAINS, build_gain
from bnnconvert.gains.base import GainSite
from bnnconvert.rewrite.base import Rewrite
from bnnconvert.rewrite.runner import build_rewrites
from bnnconvert.train.objective import build_losses
from bnnconvert.train.optimizers import check_optimizer
from bnnconvert.values.recipe import Named, Recipe


def check_recipe(recipe: Recipe) -> list[Rewrite]:
    """The recipe's rewrites, after a look at every name and option in it.

    Raises: UsageError naming the key that is wrong.
    """
    rewrites = build_rewrites(recipe)
    weights = []
    for number, rule in enumerate(recipe.layers):
        where = f"recipe {recipe.name!r}, layers[{number}]"
        if rule.weights is not None:
            place = f"{where}.weights"
            weights.append((place, build_weight_binarizer(rule.weights, EXAMPLE_SHAPE, where=place)))
            _check_fit(recipe, weights[-1][1], rule.gain, where=place)
        if rule.inputs is not None:
            build_input_binarizer(rule.inputs, 1, where=f"{where}.inputs")
        if rule.gain is not None:
            example = GainSite(path="", inputs=8, outputs=8, has_binary_inputs=rule.inputs is not None)
            build_gain(rule.gain, example, where=f"{where}.gain")
    build_losses(recipe.training.losses)
    where = f"recipe {recipe.name!r}, training.optimizer"
    check_optimizer(recipe.training.optimizer, weights, EXAMPLE_SHAPE, where=where)
    return rewrites


def unpackable(recipe: Recipe) -> str | None:
    """Why students of a recipe can be trained and not exported, as the rows say that it names; None where they can be.

    Names are not checked.
    """
    for rule in recipe.layers:
        for named, table in ((rule.weights, WEIGHT_BINARIZERS), (rule.inputs, INPUT_BINARIZERS), (rule.gain, GAINS)):
            row: Any = None if named is None else table.get(named.name)
            if named is not None and row is not None and row.unpackable is not None:
                return f"{named.name!r}: {row.unpackable}"
    return None


def _check_fit(recipe: Recipe, weights: WeightBinarizer, gain: Named | None, *, where: str) -> None:
    if any(stage.fit for stage in recipe.training.stages) and (weights.choices is None or gain is not None):
        able = ", ".join(repr(name) for name, row in WEIGHT_BINARIZERS.items() if row.choices is not None)
        raise UsageError(
            f"{where}: training.stages asks for a layer-wise `fit`, which is for {able} without a gain; choose one of "
            "them, or leave `fit` out."
        )
