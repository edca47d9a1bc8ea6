"""Image files to pixels: one size, grey or colour throughout."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bnnconvert.errors import UsageError

Pixels = npt.NDArray[np.uint8]
_GREY = {"1", "L", "LA", "La"}
_SIXTEEN_BITS = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_CHUNK = 256
_LOOK_AT = 128
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def common_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """Shape that all the images must have or be given: the size of the first; grey if 128 spread evenly are all grey.

    Shapes: -> (C, H, W).
    """
    step = max(1, len(paths) // _LOOK_AT)
    modes = set()
    for path in paths[::step]:
        with _open(path) as image:
            modes.add(image.mode)
            if path == paths[0]:
                width, height = image.size
    return (1 if modes <= _GREY | _SIXTEEN_BITS else 3), height, width


def decode(path: Path, shape: tuple[int, int, int]) -> Pixels:
    """Pixels of one image file, grey turned into colour or colour into grey as `shape` asks.

    Shapes: -> (C, H, W).

    Raises: UsageError naming a file that is unreadable or of another size.
    """
    channels, height, width = shape
    with _open(path) as image:
        if image.size != (width, height):
            raise UsageError(
                f"{path}: is {image.size[0]}x{image.size[1]} pixels, but the first training image is {width}x{height}; "
                "resize all images to one size."
            )
        try:
            pixels = _grey(image) if image.mode in _GREY | _SIXTEEN_BITS or channels == 1 else _colour(image)
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, shape)
    return pixels.transpose(2, 0, 1)


def decode_all(paths: Sequence[Path], shape: tuple[int, int, int]) -> Pixels:
    """Pixels of many image files, by as many threads as there are processors.

    Shapes: -> (N, C, H, W).

    Raises: UsageError as `decode`.
    """
    images = np.empty((len(paths), *shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(paths))):
            images[i] = decode(paths[i], shape)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for _ in threads.map(fill, range(0, len(paths), _CHUNK)):  # an error cancels what has not begun
            pass
    return images


def _open(path: Path) -> Image.Image:
    """The image with its header read."""
    try:
        return Image.open(path)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _grey(image: Image.Image) -> Pixels:
    """Luminance; of 16 bits the upper eight.

    Shapes: -> (H, W).
    """
    if image.mode in _SIXTEEN_BITS:
        return (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    return np.asarray(image if image.mode == "L" else _opaque(image).convert("L"))


def _colour(image: Image.Image) -> Pixels:
    """Red, green and blue, transparency ignored.

    Shapes: -> (H, W, 3).
    """
    return np.asarray(image if image.mode == "RGB" else _opaque(image).convert("RGB"))


def _opaque(image: Image.Image) -> Image.Image:
    """A palette's transparency made explicit, which Pillow asks for before it may be dropped."""
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def _unreadable(path: Path, error: Exception) -> UsageError:
    # Pillow's own sentence repeats the path
    reason = "no image format that Pillow knows" if "cannot identify" in str(error) else str(error)
    return UsageError(f"{path}: cannot be read as an image ({reason}); repair or remove it.")
