import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnconvert.train.augment import augmented, choose, crop_padding
from bnnconvert.train.batches import generator_for
from bnnconvert.values.inputs import specs_of
from tests.train.toys import make_data


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Every pixel its own value from 1 on, so that one can tell where it came from."""
    size = channels * height * width
    return torch.arange(1, size + 1, dtype=torch.int32).reshape(channels, height, width).expand(count, -1, -1, -1)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 12), st.integers(2, 12), st.booleans(), st.integers(0, 99))
def test_each_image_is_a_window_of_the_padded_one_maybe_mirrored(
    count: int, channels: int, height: int, width: int, flip: bool, seed: int
) -> None:
    x = images(count, channels, height, width)
    made = augmented(x, "crop-flip" if flip else "crop", generator_for(seed))
    assert made.shape == x.shape
    assert made.dtype == x.dtype
    pad_y, pad_x = crop_padding(height), crop_padding(width)
    padded = torch.nn.functional.pad(x[0], (pad_x, pad_x, pad_y, pad_y))
    windows = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad_y + 1)
        for left in range(2 * pad_x + 1)
    ]
    windows += [window.flip(2) for window in windows] if flip else []
    for image in made:
        assert any(torch.equal(image, window) for window in windows)


def test_every_offset_and_both_orientations_occur() -> None:
    made = augmented(images(600, 1, 8, 8), "crop-flip", generator_for(0))
    assert len({tuple(image.flatten().tolist()) for image in made}) == 3 * 3 * 2
    assert (
        len({tuple(image.flatten().tolist()) for image in augmented(images(600, 1, 8, 8), "crop", generator_for(0))})
        == 9
    )


def test_the_generator_decides_everything() -> None:
    x = images(16, 3, 8, 8)
    assert torch.equal(augmented(x, "crop-flip", generator_for(1)), augmented(x, "crop-flip", generator_for(1)))
    assert not torch.equal(augmented(x, "crop-flip", generator_for(1)), augmented(x, "crop-flip", generator_for(2)))


def test_the_parts_of_several_processes_make_up_the_whole_batch() -> None:
    x = torch.randint(0, 255, (12, 3, 8, 8), dtype=torch.uint8)
    whole = augmented(x, "crop-flip", generator_for(3))
    parts = [
        augmented(x[rank * 4 : rank * 4 + 4], "crop-flip", generator_for(3), rank=rank, ranks=3) for rank in range(3)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_batches_come_out_channels_last() -> None:
    made = augmented(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "crop", generator_for(0))
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (8, 1), (4, 1), (28, 3), (224, 28)])
def test_padding_grows_with_the_image(size: int, padding: int) -> None:
    assert crop_padding(size) == padding


def test_auto_flips_colour_images_only_and_leaves_small_images_and_a_factorys_data_alone() -> None:
    colour = dataclasses.replace(make_data(), specs=specs_of((1, 3, 32, 32)))
    assert choose("auto", colour) == "crop-flip"
    assert choose("auto", dataclasses.replace(colour, specs=specs_of((1, 1, 28, 28)))) == "crop"
    assert choose("auto", make_data()) == "none"
    assert choose("crop", make_data()) == "crop"
    assert choose("auto", dataclasses.replace(colour, scale="as-is")) == "none"
    assert choose("none", colour) == "none"
    x = images(2, 3, 8, 8)
    assert augmented(x, "none", generator_for(0)) is x
