from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.values.data import Data, Images, Part, Sample, Samples, check_fits, normalise, split_held_out
from bnnconvert.values.inputs import specs_of


class Unlabelled(Samples):
    """Samples whose labels only reading tells; remembers which were read."""

    def __init__(self, labels: Sequence[int]) -> None:
        self.values = list(labels)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        return torch.full((1, 2, 2), float(index)), self.values[index]


def images(labels: Sequence[int], *, channels: int = 1, size: int = 2) -> Images:
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size)
    return Images(pixels, torch.tensor(labels))


def data(train: Samples, test: Samples | None = None) -> Data:
    return Data(train, test, None, specs_of((1, *train[0][0].shape)), "uint8", (0.5,), (0.5,), "digits")


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=200),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31),
    known=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_split_is_a_partition_of_the_right_size_and_repeats(
    labels: list[int], share: float, seed: int, known: bool
) -> None:
    whole: Samples = images(labels) if known else Unlabelled(labels)
    wanted = max(1, round(share * len(labels)))
    if wanted >= len(labels):
        with pytest.raises(UsageError, match="too few to hold"):
            split_held_out(whole, share, seed)
        return
    train, held_out = split_held_out(whole, share, seed)
    assert len(held_out) == wanted
    assert sorted([*train.indices.tolist(), *held_out.indices.tolist()]) == list(range(len(labels)))
    assert train.indices.tolist() == sorted(train.indices.tolist())
    again = split_held_out(whole, share, seed)
    assert torch.equal(again[1].indices, held_out.indices)
    if known:
        assert held_out.labels is not None
        for label in set(labels):
            exact = labels.count(label) * wanted / len(labels)
            assert abs(int((held_out.labels == label).sum()) - exact) < 1


def test_another_seed_holds_out_other_samples() -> None:
    whole = images([0] * 100)
    assert not torch.equal(split_held_out(whole, 0.2, 0)[1].indices, split_held_out(whole, 0.2, 1)[1].indices)


def test_splitting_reads_no_image() -> None:
    whole = Unlabelled(range(10))
    split_held_out(whole, 0.2, 0)
    assert whole.read == []


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="has 1 sample, too few to hold 5% of them out"):
        split_held_out(images([0]), 0.05, 0)


@pytest.mark.parametrize("whole", [images([3, 1, 4, 1, 5]), Unlabelled([3, 1, 4, 1, 5])], ids=["memory", "reading"])
def test_a_part_gives_the_same_samples_singly_in_lists_and_in_batches(whole: Samples) -> None:
    part = Part(whole, torch.tensor([4, 0, 2]))
    single = [part[i] for i in range(len(part))]
    assert [label for _, label in single] == [5, 3, 4]
    assert [int(image[0, 0, 0]) for image, _ in single] == [4, 0, 2]
    assert all(isinstance(label, int) for _, label in part.__getitems__([0, 1]))
    several = part.__getitems__([2, 1])
    assert [(int(image[0, 0, 0]), label) for image, label in several] == [(2, 4), (0, 3)]
    batch, labels = part.batch(torch.tensor([2, 1]))
    assert torch.equal(batch, torch.stack([image for image, _ in several]))
    assert labels.tolist() == [4, 3]


def test_parts_of_parts_keep_their_labels() -> None:
    part = Part(Part(images([3, 1, 4, 1, 5]), torch.tensor([4, 3, 2])), torch.tensor([2, 0]))
    assert part.labels is not None
    assert part.labels.tolist() == [label for _, label in (part[0], part[1])] == [4, 5]


def test_a_data_loader_batches_them() -> None:
    batches = list(DataLoader(Part(images([3, 1, 4, 1, 5]), torch.arange(5)), batch_size=2))
    assert [labels.tolist() for _, labels in batches] == [[3, 1], [4, 1], [5]]
    assert batches[0][0].dtype == torch.uint8


@pytest.mark.parametrize(("size", "count", "chosen"), [(5, 3, [0, 2, 4]), (3, 8, [0, 1, 2]), (1, 8, [0])])
def test_a_spread_reaches_from_the_first_to_the_last(size: int, count: int, chosen: list[int]) -> None:
    assert images(range(size)).spread(count).tolist() == chosen


def test_model_inputs_are_normalised() -> None:
    part = images([0, 0, 51])
    assert data(part).inputs(part, torch.tensor([2])).flatten().tolist() == pytest.approx([(2 / 255 - 0.5) / 0.5] * 4)


def test_normalise_divides_bytes_by_255_and_then_standardises() -> None:
    batch = torch.tensor([0, 255, 51, 102], dtype=torch.uint8).view(1, 2, 1, 2)
    out = normalise(batch, (0.5, 0.25), (0.5, 2.0))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 1.0, (0.2 - 0.25) / 2, (0.4 - 0.25) / 2]))


@given(
    values=st.lists(st.integers(0, 255), min_size=6, max_size=6),
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_normalise_does_not_depend_on_the_batch_and_agrees_with_float_images(
    values: list[int], mean: list[float], std: list[float]
) -> None:
    batch = torch.tensor(values, dtype=torch.uint8).view(2, 3, 1, 1)
    out = normalise(batch, mean, std)
    assert torch.equal(out[1:], normalise(batch[1:], mean, std))
    assert torch.equal(out[1], normalise(batch[1], mean, std))
    assert torch.equal(out, normalise(batch.float() / 255, mean, std))
    back = out * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(back * 255, batch.float(), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_without_a_mean_values_stay_and_only_the_type_changes(dtype: torch.dtype) -> None:
    batch = torch.tensor([[[[7]]]], dtype=dtype)
    assert torch.equal(normalise(batch, (), ()), torch.tensor([[[[7.0]]]]))


def test_data_that_fit_pass() -> None:
    check_fits(data(images([0, 1]), images([1, 0])), specs_of((1, 1, 2, 2)), 2)
    check_fits(data(images([0, 1])), specs_of((1, 1, 2, 2)), None)


@pytest.mark.parametrize(
    ("input_shape", "says"),
    [
        ((1, 3, 2, 2), r"the images have 1 channel, but the model takes 3; convert"),
        ((1, 1, 28, 28), r"the images are 2x2, but the model takes 28x28; resize .* --input-shape 1,1,2,2"),
        ((1, 3, 28, 28), r"an image has the shape 1x2x2, but the model takes 3x28x28"),
        ((1, 784), r"an image has the shape 1x2x2, but the model takes 784"),
    ],
)
def test_images_of_another_shape_are_refused_with_both_numbers(input_shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(RefusalError, match=f"digits: {says}"):
        check_fits(data(images([0, 1])), specs_of(input_shape), 2)


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        ([0, 1, 10], None, "the training set has the label 10, but the model has 10 outputs"),
        ([0, -1], None, "the training set has the label -1"),
        ([0, 1], [0, 99], "the test set has the label 99"),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["memory", "reading"])
def test_labels_outside_the_outputs_are_refused(
    train: list[int], test: list[int] | None, says: str, known: bool
) -> None:
    def build(labels: list[int]) -> Samples:
        return images(labels) if known else Unlabelled(labels)

    with pytest.raises(RefusalError, match=says):
        check_fits(data(build(train), None if test is None else build(test)), specs_of((1, 1, 2, 2)), 10)


def test_unknown_labels_are_checked_on_a_few_samples_only() -> None:
    whole = Unlabelled([0] * 1000)
    check_fits(Data(whole, None, None, specs_of((1, 1, 2, 2)), "as-is", (), (), "x"), specs_of((1, 1, 2, 2)), 10)
    assert 0 < len(whole.read) < 100


def test_the_batch_of_an_unread_set_is_stacked() -> None:
    batch, labels = Unlabelled([7, 8, 9]).batch(torch.tensor([2, 0]))
    expected: Tensor = torch.stack([torch.full((1, 2, 2), 2.0), torch.zeros(1, 2, 2)])
    assert torch.equal(batch, expected)
    assert labels.tolist() == [9, 7]
