"""A folder of image files, `train/CLASS/*.png` and `test/CLASS/*.png`; classes in alphabetical order.

`val/` serves as the test split where there is no `test/`; where there are both, `test/` does and `val/` is not used,
because what is held out to choose the best checkpoint always comes from the training set.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from bnnconvert.errors import UsageError
from bnnconvert.load.decode import common_shape, decode, decode_all
from bnnconvert.load.splits import Splits
from bnnconvert.values.data import Images, Sample, Samples
from bnnconvert.values.inputs import Example, specs_of

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
_FITS = 2 * 1024**3
_NAMED = 3


class ImageFiles(Samples):
    """Images in files, decoded at first use: all at once if they take at most 2 GiB, else each time anew."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.paths = paths
        self.labels: Tensor = labels
        self.shape = shape
        self.fits = len(paths) * math.prod(shape) <= _FITS
        self._decoded: Images | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        images = self._images()
        if images is not None:
            return images[index]
        return torch.from_numpy(decode(self.paths[index], self.shape).copy()), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        images = self._images()
        return super().__getitems__(indices) if images is None else images.__getitems__(indices)

    def batch(self, indices: Tensor) -> tuple[Example, Tensor]:
        images = self._images()
        return super().batch(indices) if images is None else images.batch(indices)

    def _images(self) -> Images | None:
        """All images in memory, where they fit; a loader's worker process does not decode all for itself."""
        if self._decoded is None and self.fits and get_worker_info() is None:
            self._decoded = Images(torch.from_numpy(decode_all(self.paths, self.shape)), self.labels)
        return self._decoded


def recognises(spec: str) -> bool:
    """Whether this is a folder with a folder `train`."""
    return Path(spec, "train").is_dir()


def read(spec: str) -> Splits:
    """The image files of a folder; only a few of them are opened now.

    Raises: UsageError where classes or images are missing, or the two splits have other classes.
    """
    folder = Path(spec)
    train = _list(folder / "train")
    shape = common_shape([path for paths in train.values() for path in paths])
    test_folder = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    test = None if test_folder is None else _list(test_folder)
    if test_folder is not None and test is not None and test.keys() != train.keys():
        _refuse_classes(folder / "train", set(train), test_folder, set(test))
    return Splits(
        _files(train, shape), None if test is None else _files(test, shape), tuple(train), specs_of((1, *shape))
    )


def _list(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class, everything in alphabetical order; hidden files and folders do not count."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UsageError(
            f"{folder}: has no class folders; put the images into one folder for each class, {folder.name}/CLASS/*.png."
        )
    found = {path.name: _images_in(path) for path in classes}
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise UsageError(
            f"{folder / empty[0]}: has no images ({', '.join(sorted(s[1:] for s in _SUFFIXES))}); fill or remove it."
        )
    return found


def _images_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))


def _files(classes: dict[str, list[Path]], shape: tuple[int, int, int]) -> ImageFiles:
    """The files of all classes, one class after another."""
    labels = torch.tensor([label for label, paths in enumerate(classes.values()) for _ in paths])
    return ImageFiles([path for paths in classes.values() for path in paths], labels, shape)


def _refuse_classes(train: Path, expected: set[str], test: Path, found: set[str]) -> None:
    parts = [
        f"{what} {', '.join(sorted(names)[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for what, names in (("lacks", expected - found), ("has besides", found - expected))
        if names
    ]
    raise UsageError(f"{test}: {' and '.join(parts)}, compared with {train}; both need the same class folders.")
