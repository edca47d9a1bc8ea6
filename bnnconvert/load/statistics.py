"""Per-channel mean and standard deviation of images, from exact sums, so that no order of summing can matter.

    mean = (sum_i v_i) / n / 255
    std  = sqrt(n sum_i v_i^2 - (sum_i v_i)^2) / n / 255        over the n pixels v_i of a channel

A double holds every integer up to 2^53, more than the squares of a chunk add up to; across chunks they are integers.
"""

import math

import numpy as np
import torch
from torch import Tensor

from bnnconvert.values.data import Samples

_VALUES_AT_ONCE = 1 << 22
_SAMPLE = 2048


def channel_statistics(samples: Samples, *, whole: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of all images or of 2,048 spread evenly; std 1 if constant.

    Units: of [0, 1].
    """
    count = len(samples) if whole else min(len(samples), _SAMPLE)
    indices = torch.arange(count) * len(samples) // count
    image, _ = samples[0]
    assert isinstance(image, Tensor)
    first, second = [0] * len(image), [0] * len(image)
    for chunk in torch.split(indices, max(1, _VALUES_AT_ONCE // image.numel())):
        images, _ = samples.batch(chunk)
        assert isinstance(images, Tensor)
        values = images.flatten(2).numpy().astype(np.float64)
        first = [a + int(b) for a, b in zip(first, values.sum((0, 2)), strict=True)]
        second = [a + int(b) for a, b in zip(second, np.einsum("nci,nci->c", values, values), strict=True)]
    return _moments(first, second, count * image[0].numel())


def _moments(first: list[int], second: list[int], n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations from the sums of values and of their squares."""
    means = tuple(a / n / 255 for a in first)
    variances = (n * b - a * a for a, b in zip(first, second, strict=True))
    return means, tuple(math.sqrt(v) / n / 255 if v else 1.0 for v in variances)
