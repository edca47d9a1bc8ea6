"""Batches whose content is a function of (seed, epoch, step), so that a run can go on anywhere.

The order is a permutation drawn for each epoch, or a draw by weights; a data set with random transforms of its own is
seeded per item.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bnnconvert.errors import UsageError
from bnnconvert.values.data import Data, Part, Sample, Samples, normalise
from bnnconvert.values.inputs import Example, given_as


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from anything that names a place in a run."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `parts`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def whole_batch(wanted: int, samples: int, processes: int) -> int:
    """The batch size that is used: at most all samples, and the same share for each process.

    Raises: UsageError where there are fewer samples than processes, or a batch cannot be split evenly.
    """
    batch = min(wanted, samples)
    if batch < wanted:
        batch -= batch % processes
    if batch == 0 or batch % processes:
        raise UsageError(
            f"A batch of {batch or samples} samples cannot be split evenly over {processes} processes; "
            f"use a batch size that is a multiple of {processes}."
        )
    return batch


@dataclass(frozen=True)
class Sampling:
    """Samples drawn by weight, with replacement, as many as there are: anew in each epoch, or once for all.

    Shapes: weights (samples,), not negative.
    """

    weights: Tensor
    once: bool
    number: int = 0
    """Draws of other numbers are independent of this one's."""

    def order(self, seed: int, epoch: int) -> Tensor:
        """Samples of one epoch in its order."""
        count = len(self.weights)
        places = ("sample", self.number) if self.once else ("sample", self.number, epoch)
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=generator_for(seed, *places))
        return drawn[torch.randperm(count, generator=generator_for(seed, "order", epoch))]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Full batches of one epoch in that epoch's order, as (epoch, index) pairs, from any batch on."""

    drop_last = True

    def __init__(self, samples: int, batch_size: int, *, seed: int, sampling: Sampling | None = None) -> None:
        self.samples, self.batch_size, self.seed, self.sampling = samples, batch_size, seed, sampling
        self.epoch, self.first = 0, 0

    def go_to(self, epoch: int, first: int = 0) -> None:
        """Let the next iteration yield the batches of `epoch` from number `first` on."""
        self.epoch, self.first = epoch, first

    @property
    def per_epoch(self) -> int:
        """Batches of a whole epoch; a last one that is not full is left out."""
        return self.samples // self.batch_size

    def __len__(self) -> int:
        return self.per_epoch - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        if self.sampling is None:
            order = torch.randperm(self.samples, generator=generator_for(self.seed, "order", epoch)).tolist()
        else:
            order = self.sampling.order(self.seed, epoch).tolist()
        for batch in range(self.first, self.per_epoch):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in chosen]


class Keyed(Dataset[Sample]):
    """A data set asked by (epoch, index); with a seed, whatever an item draws at random is a function of both."""

    def __init__(self, samples: Samples, *, seed: int | None) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if self.seed is not None:
            seed = derive_seed(self.seed, "item", epoch, index)
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (data sets of others draw from it)
            random.seed(seed)
        return self.samples[index]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        """The samples of one batch; gathered together where their order of access cannot matter."""
        if self.seed is None:
            return self.samples.__getitems__([index for _, index in keys])
        return [self[key] for key in keys]


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Give the caller's random states back, on the CPU and on the current GPU."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)


def train_loader(part: Samples, data: Data, batches: EpochBatches, *, workers: int = 0) -> DataLoader[Sample]:
    """Loader of the training part in the order of `batches`."""
    keyed = Keyed(part, seed=_item_seed(data, batches.seed))
    return DataLoader(keyed, batch_sampler=batches, num_workers=workers, pin_memory=torch.cuda.is_available())


def plain_loader(part: Samples, data: Data, *, batch_size: int, seed: int, workers: int = 0) -> DataLoader[Sample]:
    """Loader of a part once through, in its own order, the last batch being what is left."""
    keys = [(0, index) for index in range(len(part))]
    keyed = Keyed(part, seed=_item_seed(data, seed))
    return DataLoader(keyed, batch_size=batch_size, sampler=keys, num_workers=workers)


def sample_of(part: Samples, count: int, *, seed: int) -> Part:
    """A fixed random choice of at most `count` samples."""
    return Part(part, torch.randperm(len(part), generator=generator_for(seed, "sample"))[:count])


def to_input(given: Example | list[Tensor], data: Data, device: torch.device | None = None) -> Example:
    """What a model is fed: on the device, normalised, channels last in memory where there are two axes of space.

    Shapes: given (N, ...), as the data set has it; the same comes back.
    """

    def made(x: Tensor) -> Tensor:
        x = x if device is None else x.to(device)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return normalise(x, data.mean, data.std)

    return given_as(given, made)


def _item_seed(data: Data, seed: int) -> int | None:
    """Images in memory are what they are; what a factory gives may be drawn at random."""
    return None if data.scale == "uint8" else seed
