"""Labelled samples as they travel: the data sets, how they become the model's input, and what is held out.

uint8 images    x = (pixel / 255 - mean) / std, per channel
a factory's     x as the factory gives it: a tensor of any shape, or a tuple of them for a model of several inputs
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.values.inputs import Example, Inputs, given_as

Sample = tuple[Example, int | Tensor]
_LOOK_AT = 64


class Samples(Dataset[Sample]):
    """Pairs of what a model takes and a label, of known number; `labels` where they are known without reading a pair.

    Tasks other than classification have tensors as labels.
    """

    labels: Tensor | None = None
    """Shapes: (N,), int64."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples at once: what a `DataLoader` calls for a batch."""
        return [self[index] for index in indices]

    def batch(self, indices: Tensor) -> tuple[Example, Tensor]:
        """What a model takes and labels at `indices`, stacked; the fast way where the images are in memory.

        Shapes: (B,) -> (B, ...), for images (B, C, H, W), and (B,).
        """
        given, labels = zip(*self.__getitems__(indices.tolist()), strict=True)
        if isinstance(given[0], Tensor):
            stacked: Example = torch.stack(given)
        else:
            stacked = tuple(torch.stack(each) for each in zip(*given, strict=True))
        return stacked, torch.stack([torch.as_tensor(label) for label in labels])

    def spread(self, count: int) -> Tensor:
        """At most `count` indices, evenly spread from the first sample to the last.

        Shapes: (B,), int64.
        """
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()


class Images(Samples):
    """Images in memory.

    Shapes: images (N, C, H, W) uint8, labels (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels: Tensor = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        images, labels = self.batch(torch.as_tensor(indices))
        return list(zip(images.unbind(), labels.tolist(), strict=True))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # 4 to 25 times as fast as `self.images[indices]`
        return self.images.index_select(0, indices), self.labels[indices]


class Part(Samples):
    """Some samples of another data set, in the given order."""

    def __init__(self, whole: Samples, indices: Tensor) -> None:
        self.whole = whole
        self.indices = indices
        self.labels = None if whole.labels is None else whole.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return self.whole.__getitems__(self.indices[torch.as_tensor(indices)].tolist())

    def batch(self, indices: Tensor) -> tuple[Example, Tensor]:
        return self.whole.batch(self.indices[indices])


@dataclass(frozen=True)
class Data:
    """A training set, perhaps a test set, and how their samples become the model's input."""

    train: Samples
    test: Samples | None
    classes: tuple[str, ...] | None
    specs: Inputs
    """What a sample is: shape and type of its image, or of each of its tensors."""
    scale: Literal["uint8", "as-is"]
    """`uint8`: divided by 255, then normalised; `as-is`: what a factory gives goes to the model untouched."""
    mean: tuple[float, ...]
    """Per channel, in units of [0, 1]; empty for `as-is`."""
    std: tuple[float, ...]
    source: str
    """What the user typed."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W), or of a sample's first tensor."""
        return self.specs[0].shape[1:]

    def inputs(self, samples: Samples, indices: Tensor) -> Example:
        """Model input of some samples. Shapes: (B,) -> (B, ...), for images (B, C, H, W)."""
        given, _ = samples.batch(indices)
        return given_as(given, lambda x: normalise(x, self.mean, self.std))


def normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Model input from a batch of images; as it is, floats in float32, where `mean` is empty.

    Shapes: (..., C, H, W) uint8 or float -> (..., C, H, W) float32; any where `mean` is empty.
    Units: uint8 in 0 to 255, float in [0, 1]; mean and std in [0, 1].
    """
    if not mean:
        return batch.to(torch.float32) if batch.is_floating_point() else batch
    x = batch.to(torch.float32)
    if batch.dtype == torch.uint8:
        x = x / 255
    shape = (-1, 1, 1)
    return (x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape)


def split_held_out(dataset: Samples, share: float, seed: int) -> tuple[Part, Part]:
    """A training part and a held-out part, a function of the labels and the seed alone; both keep the original order.

    Where the labels are known each class gives the same share, to within one sample, and the total is exact.

    Raises: UsageError where one of the parts would be empty.
    """
    total = len(dataset)
    wanted = max(1, round(share * total))
    if wanted >= total:
        raise UsageError(
            f"The training set has {total} sample{'s' * (total != 1)}, too few to hold {share:.0%} of them out; "
            "give more data."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    groups = [order] if dataset.labels is None else _by_class(order, dataset.labels)
    counts = _apportion([len(group) for group in groups], wanted)
    held_out = torch.zeros(total, dtype=torch.bool)
    for group, count in zip(groups, counts, strict=True):
        held_out[group[:count]] = True
    return Part(dataset, (~held_out).nonzero().flatten()), Part(dataset, held_out.nonzero().flatten())


def _by_class(order: Tensor, labels: Tensor) -> list[Tensor]:
    """The shuffled indices of each class, classes in ascending order."""
    shuffled = labels[order]
    return [order[shuffled == label] for label in torch.unique(labels)]


def _apportion(sizes: list[int], wanted: int) -> list[int]:
    """Split `wanted` over groups in proportion to their sizes, rounding the largest remainders up."""
    total = sum(sizes)
    counts = [size * wanted // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * wanted % total), i))
    for i in by_remainder[: wanted - sum(counts)]:
        counts[i] += 1
    return counts


def check_fits(data: Data, inputs: Inputs, outputs: int | None) -> None:
    """Check that the model takes these samples and has an output for every label.

    `outputs` is the number of the model's logits, None where it has no such number.

    Raises: RefusalError with both numbers.
    """
    if len(inputs) != len(data.specs):
        raise RefusalError(
            f"{data.source}: a sample has {len(data.specs)} tensor{'s' * (len(data.specs) != 1)}, but the model takes "
            f"{len(inputs)}; give ((first, second, ...), label) from a data set factory (package.module:factory)."
        )
    for ours, theirs in zip(inputs, data.specs, strict=True):
        if ours.shape[1:] != theirs.shape[1:]:
            raise RefusalError(f"{data.source}: {_what_differs(ours.shape[1:], theirs.shape[1:])}")
        if ours.dtype != theirs.dtype:
            raise RefusalError(
                f"{data.source}: gives {theirs.dtype} of shape {'x'.join(map(str, theirs.shape[1:]))}, but the model "
                f"takes {ours.dtype}; convert the tensors in the data set."
            )
    if outputs is None:
        return
    for name, samples in (("training", data.train), ("test", data.test)):
        if samples is None or not len(samples):
            continue
        labels = samples.labels if samples.labels is not None else _first_labels(samples)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= outputs:
            raise RefusalError(
                f"{data.source}: the {name} set has the label {low if low < 0 else high}, but the model has {outputs} "
                f"outputs (labels 0 to {outputs - 1}); use the data that the model was trained for."
            )


def _what_differs(wanted: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The rest of a sentence: what the images are, what the model takes, what to do."""
    if len(wanted) == len(found) == 3:
        if wanted[1:] == found[1:]:
            return (
                f"the images have {found[0]} channel{'s' * (found[0] != 1)}, but the model takes {wanted[0]}; "
                "convert the images, or use a data set factory (package.module:factory) that does."
            )
        if wanted[0] == found[0]:
            return (
                f"the images are {found[1]}x{found[2]}, but the model takes {wanted[1]}x{wanted[2]}; "
                "resize the images, or convert the model with --input-shape "
                f"1,{','.join(map(str, found))} if it can take them."
            )
    return (
        f"an image has the shape {'x'.join(map(str, found))}, but the model takes {'x'.join(map(str, wanted))}; "
        "use the data that the model was trained for."
    )


def _first_labels(samples: Samples) -> Tensor:
    """The labels of a few samples, where finding all would mean reading all."""
    return torch.tensor([int(samples[i][1]) for i in range(min(len(samples), _LOOK_AT))])
