"""Whether two ways of running a model give the same."""

import dataclasses
import math

import torch
from torch import Tensor

from bnnconvert.errors import VerificationError
from bnnconvert.rounding import is_rounding


def require_same(expected: object, actual: object, *, atol: float = 1e-5) -> None:
    """Compare what a module and its graph give; `atol` is for outputs that are nowhere above 1.

    Raises: VerificationError if they differ.
    """
    if not _is_same(expected, actual, atol):
        raise VerificationError(
            "the traced graph gives other values than the model itself, which probably behaves differently from call "
            "to call (randomness, a counter); make its evaluation mode deterministic."
        )


def _is_same(expected: object, actual: object, atol: float) -> bool:
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        if expected.shape != actual.shape:
            return False
        if not expected.is_floating_point():
            return torch.equal(expected, actual)
        return is_rounding(expected, actual, rtol=1e-4, atol=atol)
    if isinstance(expected, tuple | list) and isinstance(actual, tuple | list):
        return len(expected) == len(actual) and all(_is_same(e, a, atol) for e, a in zip(expected, actual, strict=True))
    if dataclasses.is_dataclass(expected) and not isinstance(expected, type):
        return type(actual) is type(expected) and _is_same(vars(expected), vars(actual), atol)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(_is_same(expected[k], actual[k], atol) for k in expected)
    if isinstance(expected, float) and isinstance(actual, float):
        return math.isclose(expected, actual, rel_tol=1e-4, abs_tol=1e-5) or math.isnan(expected)
    return type(expected) is type(actual) and (expected is None or isinstance(expected, Tensor) or expected == actual)
