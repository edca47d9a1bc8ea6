"""Binarizers: one method one file, one row each."""

from typing import Any

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.binarizers.libra import LibraWeight
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators import ESTIMATORS
from bnnconvert.values.recipe import Named
from bnnconvert.values.tables import build_row

WEIGHT_BINARIZERS: dict[str, type[WeightBinarizer]] = {
    "sign": SignWeight,
    "scaled-sign": ScaledSignWeight,
    "libra": LibraWeight,
}

INPUT_BINARIZERS: dict[str, type[InputBinarizer]] = {
    "sign": SignInput,
    "shifted-sign": ShiftedSignInput,
}


def build_weight_binarizer(named: Named, *, where: str) -> WeightBinarizer:
    """Weight binarizer that a rule's `weights` asks for.

    Raises: UsageError naming the key below `where`.
    """
    named, fixed = _with_estimator(named, where=where)
    return build_row(WEIGHT_BINARIZERS, named, where=where, what="weight binarizer", **fixed)


def build_input_binarizer(named: Named, channels: int, *, where: str) -> InputBinarizer:
    """Input binarizer for `channels` channels that a rule's `inputs` asks for.

    Raises: UsageError naming the key below `where`.
    """
    named, fixed = _with_estimator(named, where=where)
    return build_row(INPUT_BINARIZERS, named, where=where, what="input binarizer", channels=channels, **fixed)


def _with_estimator(named: Named, *, where: str) -> tuple[Named, dict[str, Any]]:
    """The row without its `estimator` key, and the estimator built from it: a name, or a table with options."""
    options = named.options
    given = options.pop("estimator", None)
    if given is None:
        return named, {}
    if not isinstance(given, str | dict) or (isinstance(given, dict) and not isinstance(given.get("name"), str)):
        raise UsageError(f"{where}.estimator: expected a name or a table with a name, but got {given!r}.")
    asked = Named(name=given) if isinstance(given, str) else Named(**given)
    estimator = build_row(ESTIMATORS, asked, where=f"{where}.estimator", what="estimator")
    return Named(name=named.name, **options), {"estimator": estimator}
