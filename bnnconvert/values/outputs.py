"""What models return: in plain containers, and compared."""

import dataclasses
from typing import Any

import torch
from torch import Tensor


def as_plain(output: Any) -> Any:
    """A data class or named tuple as a dictionary of its fields; anything else as it is."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type | dict):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return output._asdict() if isinstance(output, tuple) and hasattr(output, "_asdict") else output


def is_rounding(old: Tensor, new: Tensor, *, rtol: float, atol: float) -> bool:
    """Whether two outputs of one shape differ by rounding only; `atol` is for outputs that are nowhere above 1.

    Small values next to large ones are differences of large ones, and round as these do.
    """
    largest = float(old[old.isfinite()].abs().amax()) if old.isfinite().any() else 0.0
    return torch.allclose(old, new, rtol=rtol, atol=atol * max(1.0, largest), equal_nan=True)
