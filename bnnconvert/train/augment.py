"""Augmentation of a batch of images with torch operations, every random number a function of the generator.

Crop: pad with black by p on each side, cut out (H, W) at an offset of 0 to 2p. Flip: mirror left and right.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnconvert.values.data import Data
from bnnconvert.values.inputs import Example

Given = Example | list[Tensor]
Choice = Literal["auto", "none", "crop", "crop-flip"]
SMALLEST_CROPPED = 16


def choose(choice: Choice, data: Data) -> Choice:
    """What `auto` means for this data: crop, and flip only colour images, as a mirrored digit is another sign.

    Images below 16 pixels stay whole: a shift of one pixel is more than a teacher has seen. Data from a factory is
    left as it comes: whoever wrote the factory has augmented already.
    """
    if data.scale != "uint8" or len(data.sample_shape) != 3:
        return "none"
    if choice != "auto":
        return choice
    if min(data.sample_shape[1:]) < SMALLEST_CROPPED:
        return "none"
    return "crop-flip" if data.sample_shape[0] == 3 else "crop"


def crop_padding(size: int) -> int:
    """Black border for a random crop, in pixels: 4 for an image of 32, in proportion for others."""
    return max(1, size // 8)


def augmented(given: Given, choice: Choice, generator: torch.Generator, *, rank: int = 0, ranks: int = 1) -> Given:
    """Randomly cropped and flipped images, in channels-last layout; what is no images stays as it is.

    Numbers are drawn for the batches of all `ranks` together, so that a sample's fate does not depend on them.

    Shapes: given (N, C, H, W) of any type, or whatever a factory gives; the same comes back.
    """
    if choice == "none" or not isinstance(given, Tensor):
        return given
    count, _, height, width = given.shape
    pad_y, pad_x = crop_padding(height), crop_padding(width)
    mine = slice(rank * count, (rank + 1) * count)
    top = torch.randint(2 * pad_y + 1, (ranks * count,), generator=generator)[mine]
    left = torch.randint(2 * pad_x + 1, (ranks * count,), generator=generator)[mine]
    mirrored = torch.randint(2, (ranks * count,), generator=generator)[mine].bool()
    rows = top[:, None] + torch.arange(height)  # (N, H)
    columns = torch.arange(width).expand(count, width)  # (N, W)
    if choice == "crop-flip":
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = left[:, None] + columns
    padded = F.pad(given, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1)  # (N, H + 2p, W + 2p, C)
    return _gather(padded, rows.to(given.device), columns.to(given.device))


def _gather(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels at (rows, columns) of each image, as one gather of whole pixels. Shapes: padded (N, Y, X, C)."""
    count, height, width, channels = padded.shape
    first = torch.arange(count, device=padded.device)[:, None, None] * (height * width)
    index = first + rows[:, :, None] * width + columns[:, None, :]  # (N, H, W)
    pixels = padded.reshape(-1, channels).index_select(0, index.flatten())
    return pixels.reshape(*index.shape, channels).permute(0, 3, 1, 2)
