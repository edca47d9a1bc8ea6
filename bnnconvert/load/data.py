"""Load labelled images: find the source that knows what the user typed, and how its pixels are normalised."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnnconvert.errors import UsageError
from bnnconvert.load import cifar, digits, factory_data, idx, image_folder
from bnnconvert.load.image_folder import ImageFiles
from bnnconvert.load.splits import Splits
from bnnconvert.load.statistics import channel_statistics
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.values.data import Data, Images


@dataclass(frozen=True)
class Source:
    """One way in which data come."""

    recognises: Callable[[str], bool]
    read: Callable[[str], Splits]


SOURCES: dict[str, Source] = {
    "digits": Source(digits.recognises, digits.read),
    "factory": Source(factory_data.recognises, factory_data.read),
    "IDX files": Source(idx.recognises, idx.read),
    "CIFAR batches": Source(cifar.recognises, cifar.read),
    "image folder": Source(image_folder.recognises, image_folder.read),
}
"""Tried in this order."""


def load_data(
    spec: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    task: Task = CLASSIFICATION,
) -> Data:
    """Load data from a folder, `digits` or `package.module:factory`.

    `mean` and `std` are by default those of the training set. Where they are given, image files are not decoded before
    they are used.

    Units: mean and std of [0, 1], one number per channel.

    Raises: UsageError where there is no such data or it is damaged, RefusalError where it holds code.
    """
    spec = str(spec)
    source = next((row for row in SOURCES.values() if row.recognises(spec)), None)
    if source is None:
        raise _unknown(spec)
    if task.name == "classification":
        splits = source.read(spec)
    elif source.read is factory_data.read:
        splits = factory_data.read(spec, task)
    else:
        raise UsageError(
            f"{spec}: has one class per image, which is no data for {task.name}; give data sets of your own with "
            "--data package.module:factory."
        )
    means, stds = _normalisation(splits, mean, std, spec)
    return Data(splits.train, splits.test, splits.classes, splits.specs, splits.scale, means, stds, spec)


def _normalisation(
    splits: Splits, mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation to use: given, else the training set's own; none but for uint8 images."""
    if (mean is None) != (std is None):
        raise UsageError(f"{where}: --mean and --std belong together; give both or neither.")
    if splits.scale == "as-is":
        if mean is not None:
            raise UsageError(
                f"{where}: gives what is no uint8 image, which is not normalised again; leave out --mean and --std."
            )
        return (), ()
    if mean is None or std is None:
        train = splits.train
        whole = isinstance(train, Images) or (isinstance(train, ImageFiles) and train.fits)
        return channel_statistics(train, whole=whole)
    channels = splits.specs[0].shape[1]
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise UsageError(
                f"{where}: {name} has {len(values)} number{'s' * (len(values) != 1)}, but the images have {channels} "
                f"channel{'s' * (channels != 1)}; give one number per channel."
            )
    if not all(math.isfinite(value) for value in mean) or not all(math.isfinite(v) and v > 0 for v in std):
        raise UsageError(f"{where}: --mean must be finite and --std greater than 0; both are in units of [0, 1].")
    return tuple(mean), tuple(std)


def _unknown(spec: str) -> UsageError:
    """Why nothing recognises what the user typed."""
    layouts = (
        "train/CLASS/*.png and test/CLASS/*.png, IDX files (train-images-idx3-ubyte.gz, ...), or CIFAR's Python batches"
    )
    path = Path(spec)
    if path.is_dir():
        return UsageError(f"{spec}: holds no data in a known form; it needs {layouts}.")
    if path.exists():
        return UsageError(f"{spec}: is a file; unpack it if it is an archive, and give the folder, with {layouts}.")
    return UsageError(f"{spec}: there is no such folder; give a folder, the name digits, or package.module:factory.")
