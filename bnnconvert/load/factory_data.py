"""`package.module:factory`: the user's own data sets, `(train, validation)`."""

from collections.abc import Sized
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bnnconvert.errors import UsageError, brief
from bnnconvert.load.splits import Splits
from bnnconvert.load.user_code import call_factory, is_factory
from bnnconvert.tasks import CLASSIFICATION, Task
from bnnconvert.values.data import Sample, Samples


class FactorySamples(Samples):
    """A data set of the user's, its samples checked to be an image and a label."""

    def __init__(self, dataset: Any, where: str, task: Task = CLASSIFICATION) -> None:
        self.dataset = dataset
        self.where = where
        self.task = task
        self.labels = _known_labels(dataset) if task.name == "classification" else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Sample:
        sample = self.dataset[number]
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise UsageError(f"{self.where}: a sample is a {type(sample).__name__}; it must be a pair (image, label).")
        image, label = sample[0], sample[1]
        if not isinstance(image, Tensor) or not (image.is_floating_point() or image.dtype == torch.uint8):
            kind = f"a tensor of {image.dtype}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise UsageError(f"{self.where}: an image is {kind}; it must be a float or uint8 tensor (C, H, W).")
        return image, self._label(label)

    def _label(self, label: Any) -> int | Tensor:
        """The label as an integer, or what the task makes of it."""
        if self.task.name != "classification":
            try:
                return self.task.target(label)
            except (TypeError, ValueError, RuntimeError) as error:
                raise UsageError(
                    f"{self.where}: a target is no target of {self.task.name} ({brief(error)})."
                ) from error
        try:
            return index(label.item() if isinstance(label, Tensor) else label)  # type: ignore[arg-type]  # checked here
        except (TypeError, RuntimeError) as error:
            raise UsageError(f"{self.where}: a label is {label!r:.40}; it must be one whole number.") from error


def recognises(spec: str) -> bool:
    """Whether this reads as `package.module:factory`."""
    return is_factory(spec)


def read(spec: str, task: Task = CLASSIFICATION) -> Splits:
    """The two data sets; uint8 images are normalised like those of a folder, float ones are left as they are.

    Raises: UsageError where the factory fails or gives something else.
    """
    made = call_factory(spec)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise UsageError(
            f"{spec}: gave a {type(made).__name__}; it must return a pair of data sets (train, validation), the second "
            "of which may be None."
        )
    train = _checked(made[0], spec, "training", task)
    test = None if made[1] is None else _checked(made[1], spec, "validation", task)
    first = _first(train)
    if test is not None:
        second = _first(test)
        if (second.shape, second.dtype) != (first.shape, first.dtype):
            raise UsageError(
                f"{spec}: training images are {_kind(first)}, but validation images are {_kind(second)}; give both "
                "the same form."
            )
    scale: Literal["uint8", "as-is"] = "uint8" if first.dtype == torch.uint8 else "as-is"
    return Splits(train, test, _classes(made[0]), tuple(first.shape), scale)


def _checked(dataset: Any, where: str, name: str, task: Task) -> FactorySamples:
    """A data set with a length and items."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{where}: the {name} set is a {type(dataset).__name__}; it must have a length and numbered items "
            "(__len__ and __getitem__)."
        )
    if not len(dataset):
        raise UsageError(f"{where}: the {name} set is empty; give at least one sample.")
    return FactorySamples(dataset, where, task)


def _first(samples: FactorySamples) -> Tensor:
    """The first image, which must have three dimensions."""
    try:
        image, _ = samples[0]
    except UsageError:
        raise
    except Exception as error:  # the user's data set may fail in any way; the cause stays attached
        raise UsageError(
            f"{samples.where}: reading the first sample failed ({brief(error)}); mend the data set."
        ) from error
    if image.dim() != 3:
        raise UsageError(f"{samples.where}: an image has the shape {tuple(image.shape)}; it must be (C, H, W).")
    return image


def _kind(image: Tensor) -> str:
    return f"{'x'.join(map(str, image.shape))} of {str(image.dtype).removeprefix('torch.')}"


def _known_labels(dataset: Any) -> Tensor | None:
    """Labels that torchvision's data sets and many others keep as `targets` or `labels`."""
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, list | Tensor) and len(values) == len(dataset):
            try:
                labels = torch.as_tensor(values)
            except (TypeError, ValueError, RuntimeError):
                continue
            if labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
                return labels.to(torch.int64)
    return None


def _classes(dataset: Any) -> tuple[str, ...] | None:
    """Names of the classes, where the data set tells them."""
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None
