"""IDX files, plain or gzipped, as MNIST and its family ship them: `train-images-idx3-ubyte`, `t10k-...`.

two zero bytes, the type (8: uint8), the number of dimensions, each dimension as uint32 big-endian, the values
"""

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bnnconvert.errors import UsageError
from bnnconvert.load.splits import Splits
from bnnconvert.values.data import Images
from bnnconvert.values.inputs import specs_of

_NAME = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)[-_.](?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?", re.I)
_LARGEST = 1 << 34


def recognises(spec: str) -> bool:
    """Whether this is a folder with IDX files."""
    return Path(spec).is_dir() and bool(_files(Path(spec)))


def read(spec: str) -> Splits:
    """The images and labels of a folder with IDX files.

    Raises: UsageError naming a file that is missing, damaged or at odds with its partner.
    """
    folder = Path(spec)
    files = _files(folder)
    sets = sorted({name for name, _, _ in files})
    if len(sets) > 1:
        raise UsageError(f"{spec}: holds several data sets ({', '.join(sets)}); give each its own folder.")
    train = _read_part(folder, files, sets[0], "train")
    test = _read_part(folder, files, sets[0], "test") if (sets[0], "test", "images") in files else None
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise UsageError(
            f"{spec}: the test images are {test.images.shape[2]}x{test.images.shape[3]}, but the training images are "
            f"{train.images.shape[2]}x{train.images.shape[3]}; take all files from one source."
        )
    return Splits(train, test, None, specs_of(train.images.shape))


def _files(folder: Path) -> dict[tuple[str, str, str], Path]:
    """IDX files of a folder by data set, part and content; the plain one where there is a gzipped one as well."""
    found: dict[tuple[str, str, str], Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # `.gz` comes first and is overwritten
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            part = "train" if match["part"].lower() == "train" else "test"
            found[match["set"], part, match["what"].lower()] = path
    return found


def _read_part(folder: Path, files: dict[tuple[str, str, str], Path], name: str, part: str) -> Images:
    """One part of the data set, images and labels."""
    for what in ("images", "labels"):
        if (name, part, what) not in files:
            raise UsageError(f"{folder}: has no IDX file with the {part} {what}; put it beside the others.")
    image_path, label_path = files[name, part, "images"], files[name, part, "labels"]
    images, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise UsageError(
            f"{label_path}: has {len(labels)} labels for the {len(images)} images of {image_path.name}; "
            "take both files from one source."
        )
    return Images(images[:, None], labels.to(torch.int64))


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Values of one IDX file of uint8 with so many dimensions.

    Raises: UsageError where the file is something else, cut short or too long.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dimensions)
            magic = bytes((0, 0, 8, dimensions))
            if head[:4] != magic:
                raise UsageError(
                    f"{path}: begins with {head[:4].hex() or 'nothing'} instead of {magic.hex()}, "
                    f"so it is no IDX file of uint8 in {dimensions} dimensions; download it again."
                )
            shape = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
            size = math.prod(shape)
            if len(shape) < dimensions or size > _LARGEST:
                raise UsageError(f"{path}: has a damaged header; download it again.")
            data = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: is no complete gzip file ({error}); download it again.") from error
    if len(data) != size:
        found = f"{len(data)}" if len(data) < size else f"more than {size}"
        raise UsageError(f"{path}: holds {found} values, but its header says {size}; download it again.")
    if not size:
        raise UsageError(f"{path}: is empty; download it again.")
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(shape)
