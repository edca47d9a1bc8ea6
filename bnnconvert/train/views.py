"""The data as a run looks at it: a training part in fixed batches, a part that is held out."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bnnconvert.train.augment import Choice, augmented
from bnnconvert.train.batches import generator_for, plain_loader, sample_of, to_input
from bnnconvert.values.data import Data, Samples, split_held_out
from bnnconvert.values.inputs import Example, samples_in

MONITOR_SAMPLES = 256


@dataclass(frozen=True)
class Views:
    """The two parts of a training set; whatever is looked at twice is the same each time, and on each process."""

    data: Data
    train: Samples
    held_out: Samples
    seed: int
    device: torch.device

    @classmethod
    def of(cls, data: Data, share: float, *, seed: int, device: torch.device) -> "Views":
        """Split the training set of `data`."""
        return cls(data, *split_held_out(data.train, share, seed), seed, device)

    def batches(self, count: int, size: int, *, augmentation: Choice = "none") -> Iterator[Example]:
        """Up to `count` whole batches of inputs of the training part."""
        chosen = sample_of(self.train, count * size, seed=self.seed)
        loader = plain_loader(chosen, self.data, batch_size=size, seed=self.seed)
        draws = generator_for(self.seed, "augment", "views")
        inputs = (to_input(augmented(given, augmentation, draws), self.data, self.device) for given, _ in loader)
        return (x for x in inputs if samples_in(x) == size)

    def monitor_input(self) -> Example:
        """A fixed batch of held-out inputs."""
        chosen = sample_of(self.held_out, MONITOR_SAMPLES, seed=self.seed)
        images, _ = next(iter(plain_loader(chosen, self.data, batch_size=MONITOR_SAMPLES, seed=self.seed)))
        return to_input(images, self.data, self.device)
