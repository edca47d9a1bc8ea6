"""Binarizers: one method one file, one row each."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from bnnconvert.binarizers.abcnet import AbcInput, AbcWeight
from bnnconvert.binarizers.adabin import AdabinInput, AdabinWeight
from bnnconvert.binarizers.admm import AdmmWeight
from bnnconvert.binarizers.balanced import BalancedWeight
from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.binarizers.biper import BiperWeight
from bnnconvert.binarizers.bitwise import BitwiseInput, BitwiseWeight
from bnnconvert.binarizers.circulant import CirculantWeight
from bnnconvert.binarizers.dorefa import DorefaInput, DorefaWeight
from bnnconvert.binarizers.dsq import DsqInput, DsqWeight
from bnnconvert.binarizers.fqn import FqnInput, FqnWeight
from bnnconvert.binarizers.horq import HorqInput
from bnnconvert.binarizers.horq_patch import HorqPatchInput
from bnnconvert.binarizers.hwgq import HwgqInput
from bnnconvert.binarizers.lab import LabWeight
from bnnconvert.binarizers.learned_scale import LearnedScaleWeight
from bnnconvert.binarizers.libra import LibraWeight
from bnnconvert.binarizers.pact import PactInput
from bnnconvert.binarizers.rbnn import RbnnWeight
from bnnconvert.binarizers.recu import RecuWeight
from bnnconvert.binarizers.residual import ResidualWeight
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.self_binarizing import SelfBinarizingInput, SelfBinarizingWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput, SignWeight
from bnnconvert.binarizers.standardized_sign import StandardizedSignInput
from bnnconvert.binarizers.ternary import TernaryWeight
from bnnconvert.binarizers.tsq import TsqInput
from bnnconvert.binarizers.wrpn import WrpnInput, WrpnWeight
from bnnconvert.errors import UsageError
from bnnconvert.estimators import ESTIMATORS
from bnnconvert.values.recipe import Named
from bnnconvert.values.tables import build_row

WEIGHT_BINARIZERS: dict[str, type[WeightBinarizer]] = {
    "sign": SignWeight,
    "scaled-sign": ScaledSignWeight,
    "libra": LibraWeight,
    "learned-scale": LearnedScaleWeight,
    "recu": RecuWeight,
    "rbnn": RbnnWeight,
    "adabin": AdabinWeight,
    "biper": BiperWeight,
    "dorefa": DorefaWeight,
    "dsq": DsqWeight,
    "balanced": BalancedWeight,
    "self-binarizing": SelfBinarizingWeight,
    "wrpn": WrpnWeight,
    "ternary": TernaryWeight,
    "lab": LabWeight,
    "admm": AdmmWeight,
    "abc": AbcWeight,
    "residual": ResidualWeight,
    "fqn": FqnWeight,
    "bitwise": BitwiseWeight,
    "circulant": CirculantWeight,
}

INPUT_BINARIZERS: dict[str, type[InputBinarizer]] = {
    "sign": SignInput,
    "shifted-sign": ShiftedSignInput,
    "standardized-sign": StandardizedSignInput,
    "adabin": AdabinInput,
    "dorefa": DorefaInput,
    "pact": PactInput,
    "dsq": DsqInput,
    "self-binarizing": SelfBinarizingInput,
    "hwgq": HwgqInput,
    "wrpn": WrpnInput,
    "tsq": TsqInput,
    "abc": AbcInput,
    "horq": HorqInput,
    "horq-patch": HorqPatchInput,
    "fqn": FqnInput,
    "bitwise": BitwiseInput,
}


EXAMPLE_SHAPE = (8, 8, 3, 3)
"""Of a weight, to look at a recipe's options without a layer; rewrites may still change the layers' shapes."""


def build_weight_binarizer(named: Named, shape: tuple[int, ...], *, where: str) -> WeightBinarizer:
    """Weight binarizer for a latent weight of this shape that a rule's `weights` asks for.

    Raises: UsageError naming the key below `where`.
    """
    named, fixed = _with_estimator(WEIGHT_BINARIZERS, named, where=where)
    return build_row(WEIGHT_BINARIZERS, named, where=where, what="weight binarizer", shape=shape, **fixed)


def build_input_binarizer(named: Named, channels: int, *, where: str) -> InputBinarizer:
    """Input binarizer for `channels` channels that a rule's `inputs` asks for.

    Raises: UsageError naming the key below `where`.
    """
    named, fixed = _with_estimator(INPUT_BINARIZERS, named, where=where)
    return build_row(INPUT_BINARIZERS, named, where=where, what="input binarizer", channels=channels, **fixed)


def takes_estimator(row: type[nn.Module]) -> bool:
    """Whether the recipe chooses the surrogate gradient; a method may bring its own."""
    return "estimator" in inspect.signature(row).parameters


def _with_estimator(table: Mapping[str, type[nn.Module]], named: Named, *, where: str) -> tuple[Named, dict[str, Any]]:
    """The row without its `estimator` key, and the estimator built from it: a name, or a table with options."""
    options = named.options
    if named.name in table and not takes_estimator(table[named.name]):
        return named, {}  # so that the key is an unknown option there
    given = options.pop("estimator", None)
    if given is None:
        return named, {}
    if not isinstance(given, str | dict) or (isinstance(given, dict) and not isinstance(given.get("name"), str)):
        raise UsageError(f"{where}.estimator: expected a name or a table with a name, but got {given!r}.")
    asked = Named(name=given) if isinstance(given, str) else Named(**given)
    estimator = build_row(ESTIMATORS, asked, where=f"{where}.estimator", what="estimator")
    return Named(name=named.name, **options), {"estimator": estimator}
