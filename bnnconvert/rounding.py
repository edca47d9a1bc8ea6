"""Whether two ways of computing the same differ by rounding only."""

import torch
from torch import Tensor


def is_rounding(old: Tensor, new: Tensor, *, rtol: float, atol: float) -> bool:
    """Whether two tensors of one shape are close; `atol` is for such that are nowhere above 1.

    Small values next to large ones are differences of large ones, and round as these do.
    """
    largest = float(old[old.isfinite()].abs().amax()) if old.isfinite().any() else 0.0
    return torch.allclose(old, new, rtol=rtol, atol=atol * max(1.0, largest), equal_nan=True)
