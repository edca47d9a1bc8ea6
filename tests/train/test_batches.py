import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnnconvert.errors import UsageError
from bnnconvert.train.batches import (
    EpochBatches,
    derive_seed,
    preserved_randomness,
    to_input,
    train_loader,
    whole_batch,
)
from tests.train.toys import make_data


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_a_permutation_and_goes_on_from_any_batch(samples: int, size: int, epoch: int, first: int) -> None:
    batches = EpochBatches(samples, min(size, samples), seed=0)
    batches.go_to(epoch)
    whole = list(batches)
    assert len(whole) == len(batches) == batches.per_epoch
    drawn = [index for batch in whole for _, index in batch]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(range(samples))
    assert {e for batch in whole for e, _ in batch} == {epoch}
    first = min(first, batches.per_epoch)
    batches.go_to(epoch, first)
    assert list(batches) == whole[first:]


def test_epochs_and_seeds_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(50, 50, seed=seed)
        batches.go_to(epoch)
        return [index for _, index in next(iter(batches))]

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_seeds_depend_on_every_part_and_fit_torch() -> None:
    seeds = {derive_seed(*parts) for parts in ((1, "a", 2), (1, "a", 3), (1, "b", 2), (12, "a"), (1, "2a"))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_loader_gives_images_and_labels_in_the_order_of_the_batches() -> None:
    data = make_data(samples=20)
    batches = EpochBatches(20, 8, seed=0)
    for (images, labels), keys in zip(train_loader(data.train, data, batches), batches, strict=True):
        indices = [index for _, index in keys]
        assert torch.equal(images, data.train.images[indices])
        assert torch.equal(labels, data.train.labels[indices])


def test_inputs_are_normalised_and_channels_last() -> None:
    data = make_data(samples=4)
    x = to_input(data.train.images, data)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, (data.train.images / 255 - 0.3) / 0.25)


def test_batch_sizes_fit_the_data_and_the_processes() -> None:
    assert whole_batch(16, 100, 2) == 16
    assert whole_batch(128, 25, 2) == 24
    with pytest.raises(UsageError, match="multiple of 2"):
        whole_batch(15, 100, 2)
    with pytest.raises(UsageError, match="cannot be split"):
        whole_batch(16, 1, 2)


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with preserved_randomness():
        draw()
    assert draw() == expected
