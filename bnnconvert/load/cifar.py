"""CIFAR-10 and CIFAR-100 in their Python form: pickled batches, read without running anything they might contain.

The unpickler knows five names, which are all that such a batch uses, and gives stand-ins for numpy's: an array is
rebuilt here from its bytes, type and shape.
"""

import math
import pickle
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.splits import Splits
from bnnconvert.values.data import Images
from bnnconvert.values.inputs import specs_of

_TYPES = {"u1": np.uint8, "uint8": np.uint8, "i4": np.int32, "i8": np.int64}
_SHAPE = (3, 32, 32)
_SUBFOLDERS = ("", "cifar-10-batches-py", "cifar-100-python")


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: Any, *_: object) -> None:
        name = name.decode() if isinstance(name, bytes) else name
        if name not in _TYPES:
            raise pickle.UnpicklingError(f"the number type {name!r}")
        self.type = _TYPES[name]

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which the types of `_TYPES` do not need."""


class _Array:
    """Stands for `numpy.ndarray`."""

    values: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_column, data = state
        self.values = np.frombuffer(data, dtype.type).reshape(shape, order="F" if by_column else "C").copy()


def _empty_array(*_: object) -> _Array:
    """Stands for numpy's `_reconstruct`, which makes the empty array whose state follows."""
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes in old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r}")
    return text.encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    """Knows the names that a batch needs and no other."""

    names: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.names[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"the name {module_name}.{global_name}") from None


def recognises(spec: str) -> bool:
    """Whether this folder, or the archive's own folder in it, holds CIFAR batches."""
    return _folder(spec) is not None


def read(spec: str) -> Splits:
    """The images, fine labels and class names of CIFAR-10 or CIFAR-100.

    Raises: UsageError where a batch is missing or damaged, RefusalError where it holds anything but images.
    """
    folder = _folder(spec)
    assert folder is not None  # `recognises` said so
    if (folder / "data_batch_1").is_file():
        train = _read_batches([folder / f"data_batch_{i}" for i in range(1, 6)], "labels")
        test = _read_batches([folder / "test_batch"], "labels")
        return Splits(train, test, _read_names(folder / "batches.meta", "label_names"), specs_of((1, *_SHAPE)))
    train = _read_batches([folder / "train"], "fine_labels")
    test = _read_batches([folder / "test"], "fine_labels")
    return Splits(train, test, _read_names(folder / "meta", "fine_label_names"), specs_of((1, *_SHAPE)))


def _folder(spec: str) -> Path | None:
    for name in _SUBFOLDERS:
        folder = Path(spec, name)
        if (folder / "data_batch_1").is_file() or ((folder / "train").is_file() and (folder / "meta").is_file()):
            return folder
    return None


def _read_batches(paths: list[Path], label_key: str) -> Images:
    """The images of several batches, one after another."""
    batches = [_read_batch(path, label_key) for path in paths]
    images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, *_SHAPE)
    labels = np.concatenate([labels for _, labels in batches])
    return Images(torch.from_numpy(images), torch.from_numpy(labels))


def _read_batch(path: Path, label_key: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels and labels of one batch.

    Shapes: (N, 3072), (N,).
    """
    content = _unpickle(path)
    pixels, labels = content.get("data"), content.get(label_key)
    if isinstance(labels, _Array):
        labels = labels.values.tolist()
    if (
        not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
        or not isinstance(pixels, _Array)
        or pixels.values.dtype != np.uint8
        or pixels.values.shape != (len(labels), math.prod(_SHAPE))
    ):
        raise UsageError(f"{path}: is no CIFAR batch of 32x32 images with {label_key}; download it again.")
    return pixels.values, np.array(labels, np.int64)


def _read_names(path: Path, key: str) -> tuple[str, ...] | None:
    """Names of the classes, where the file with them is there."""
    if not path.exists():
        return None
    names = _unpickle(path).get(key)
    if not isinstance(names, list):
        raise UsageError(f"{path}: has no list of {key}; download it again.")
    return tuple(_text(name) for name in names)


def _unpickle(path: Path) -> dict[str, Any]:
    """The dictionary in a batch, its keys as text whichever Python wrote them."""
    try:
        with open(path, "rb") as file:
            content = _BatchUnpickler(file, encoding="bytes").load()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: is missing; download the data set again.") from error
    except pickle.UnpicklingError as error:
        raise RefusalError(
            f"{path}: is no plain CIFAR batch, reading it stopped at {error}; download it again."
        ) from error
    except (EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError, MemoryError, zlib.error) as error:
        raise UsageError(f"{path}: is damaged or not complete; download it again.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is no CIFAR batch; download it again.")
    return {_text(key): value for key, value in content.items()}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
