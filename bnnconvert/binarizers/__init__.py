"""Binarizers: one method one file, one row each."""

from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.binarizers.libra import LibraWeight
from bnnconvert.binarizers.scaled_sign import ScaledSignWeight
from bnnconvert.binarizers.shifted_sign import ShiftedSignInput
from bnnconvert.binarizers.sign import SignInput, SignWeight

WEIGHT_BINARIZERS: dict[str, type[WeightBinarizer]] = {
    "sign": SignWeight,
    "scaled-sign": ScaledSignWeight,
    "libra": LibraWeight,
}

INPUT_BINARIZERS: dict[str, type[InputBinarizer]] = {
    "sign": SignInput,
    "shifted-sign": ShiftedSignInput,
}
