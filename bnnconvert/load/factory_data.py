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
from bnnconvert.values.inputs import Inputs, as_tuple, specs_of, specs_of_example

_WHOLE = (torch.uint8, torch.int32, torch.int64, torch.bool)
_LOOK_AT = 64
"""Samples whose largest integer says how large integers are."""


class FactorySamples(Samples):
    """A data set of the user's, its samples checked to be what a model takes and a label."""

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
            raise UsageError(f"{self.where}: a sample is a {type(sample).__name__}; it must be a pair (input, label).")
        given = tuple(sample[0]) if isinstance(sample[0], list) else sample[0]
        for tensor in as_tuple(given):
            self._check(tensor)
        return given, self._label(sample[1])

    def _check(self, tensor: Any) -> None:
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.dtype in _WHOLE):
            kind = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise UsageError(
                f"{self.where}: an input is {kind}; it must be a tensor of floats or integers, as an image (C, H, W), "
                "or a tuple of tensors for a model of several inputs."
            )

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
        if _forms(second) != _forms(first):
            raise UsageError(
                f"{spec}: training samples are {_kind(first)}, but validation samples are {_kind(second)}; give both "
                "the same form."
            )
    is_image = len(first) == 1 and first[0].dtype == torch.uint8 and first[0].dim() == 3
    scale: Literal["uint8", "as-is"] = "uint8" if is_image else "as-is"
    return Splits(train, test, _classes(made[0]), _specs(train, first, is_image=is_image), scale)


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


def _first(samples: FactorySamples) -> tuple[Tensor, ...]:
    """The first sample's tensors."""
    try:
        given, _ = samples[0]
    except UsageError:
        raise
    except Exception as error:  # the user's data set may fail in any way; the cause stays attached
        raise UsageError(
            f"{samples.where}: reading the first sample failed ({brief(error)}); mend the data set."
        ) from error
    for tensor in as_tuple(given):
        if not tensor.dim():
            raise UsageError(f"{samples.where}: an input is one number; it must be a tensor with an axis or more.")
    return as_tuple(given)


def _forms(tensors: tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def _kind(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{'x'.join(map(str, t.shape))} of {str(t.dtype).removeprefix('torch.')}" for t in tensors)


def _specs(samples: FactorySamples, first: tuple[Tensor, ...], *, is_image: bool) -> Inputs:
    """What the samples are; an image of bytes becomes one of floats."""
    if is_image or all(tensor.is_floating_point() for tensor in first):
        return specs_of([(1, *tensor.shape) for tensor in first])
    some, _ = samples.batch(samples.spread(_LOOK_AT))
    return specs_of_example(some)


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
