from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bnnconvert.errors import UsageError
from bnnconvert.load.data import load_data
from bnnconvert.load.image_folder import ImageFiles


def save(path: Path, pixels: np.ndarray | int | list[int], *, mode: str | None = None, size: int = 4) -> None:
    """An image file of given pixels, or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(pixels, np.ndarray):
        pixels = np.full((size, size) if isinstance(pixels, int) else (size, size, len(pixels)), pixels, np.uint8)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)


def write(folder: Path, *, splits: tuple[str, ...] = ("train", "test"), suffix: str = ".png") -> None:
    """Two classes, two images each; the red value tells split, class and number."""
    for s, split in enumerate(splits):
        for c, name in enumerate(("cat", "dog")):
            for n in range(2):
                save(folder / split / name / f"{n}{suffix}", [100 * s + 10 * c + n, 0, 255])


def red(data: object, index: int) -> int:
    image, _ = data[index]  # type: ignore[index]
    return int(image[0, 0, 0])


def test_classes_and_images_come_in_alphabetical_order(tmp_path: Path) -> None:
    write(tmp_path)
    data = load_data(tmp_path)
    assert data.test is not None
    assert data.classes == ("cat", "dog")
    assert data.sample_shape == (3, 4, 4)
    assert [(red(data.train, i), data.train[i][1]) for i in range(4)] == [(0, 0), (1, 0), (10, 1), (11, 1)]
    assert [red(data.test, i) for i in range(4)] == [100, 101, 110, 111]
    assert data.mean == pytest.approx((5.5 / 255, 0, 1))
    assert data.std[1:] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("splits", "first"), [(("train", "test", "val"), 100), (("train", "val"), 100), (("train",), None)]
)
def test_test_comes_before_val(tmp_path: Path, splits: tuple[str, ...], first: int | None) -> None:
    write(tmp_path, splits=splits)
    test = load_data(tmp_path).test
    assert (None if test is None else red(test, 0)) == first


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG", ".webp", ".tif", ".ppm"])
def test_lossless_formats_keep_every_value(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path = tmp_path / "train" / "a" / f"1{suffix}"
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    image, _ = load_data(tmp_path).train[0]
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_read(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, suffix=suffix)
    assert red(load_data(tmp_path).test, 3) == pytest.approx(111, abs=8)


def test_other_and_hidden_files_and_folders_do_not_count(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    (tmp_path / "train" / "cat" / "._0.png").write_text("")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "readme.md").write_text("")
    assert len(load_data(tmp_path).train) == 4


def test_images_in_folders_below_a_class_count(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "young" / "1.png", 1)
    assert len(load_data(tmp_path).train) == 1


def test_a_grey_set_has_one_channel(tmp_path: Path) -> None:
    for i, mode in enumerate(("L", "1", "LA")):
        save(tmp_path / "train" / "a" / f"{i}.png", 255, mode=mode)
    data = load_data(tmp_path)
    assert data.sample_shape == (1, 4, 4)
    assert [int(data.train[i][0].min()) for i in range(3)] == [255] * 3


def test_sixteen_bit_grey_keeps_its_upper_eight(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png", np.full((2, 2), 0x1234, np.uint16))
    image, _ = load_data(tmp_path).train[0]
    assert image.tolist() == [[[0x12, 0x12], [0x12, 0x12]]]


@pytest.mark.parametrize("grey_first", [True, False])
def test_a_mixed_set_is_colour_throughout(tmp_path: Path, grey_first: bool) -> None:
    save(tmp_path / "train" / "a" / ("0.png" if grey_first else "9.png"), 77)
    save(tmp_path / "train" / "a" / "5.png", [1, 2, 3])
    save(tmp_path / "train" / "b" / "5.png", [1, 2, 3, 0])
    save(tmp_path / "train" / "b" / "6.png", [0, 0, 0], mode="P")
    data = load_data(tmp_path)
    assert data.sample_shape == (3, 4, 4)
    grey, _ = data.train[0 if grey_first else 1]
    assert grey.unique().tolist() == [77]
    assert data.train[2][0][:, 0, 0].tolist() == [1, 2, 3]


def test_the_test_split_follows_the_training_split(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "0.png", 77)
    save(tmp_path / "test" / "a" / "0.png", [255, 255, 255])
    save(tmp_path / "test" / "a" / "1.png", [255, 0, 0])
    data = load_data(tmp_path)
    assert data.test is not None
    assert [int(data.test[i][0][0, 0, 0]) for i in (0, 1)] == [255, 76]
    assert data.test[0][0].shape == (1, 4, 4)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(path, transparency=b"\x00\xff")
    assert load_data(tmp_path).train[0][0][:, 0, 0].tolist() == [10, 20, 30]


def test_sets_that_do_not_fit_are_read_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    whole = load_data(tmp_path)
    monkeypatch.setattr("bnnconvert.load.image_folder._FITS", 100)
    lazy = load_data(tmp_path)
    assert isinstance(lazy.train, ImageFiles)
    assert not lazy.train.fits
    assert lazy.mean == whole.mean
    some = torch.tensor([3, 1])
    assert torch.equal(lazy.train.batch(some)[0], whole.train.batch(some)[0])
    assert torch.equal(lazy.train.batch(some)[1], whole.train.batch(some)[1])
    assert [label for _, label in lazy.train.__getitems__([2, 0])] == [1, 0]
    (tmp_path / "train" / "dog" / "1.png").unlink()
    with pytest.raises(UsageError, match=r"1\.png: cannot be read"):
        lazy.train[3]


def test_the_three_ways_to_read_agree(tmp_path: Path) -> None:
    write(tmp_path)
    train = load_data(tmp_path).train
    batch, labels = train.batch(torch.tensor([3, 0]))
    several = train.__getitems__([3, 0])
    assert torch.equal(batch, torch.stack([image for image, _ in several]))
    assert labels.tolist() == [label for _, label in several] == [train[3][1], train[0][1]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_of_a_loader_read_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    train = load_data(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3).train
    batches = list(DataLoader(train, batch_size=2, num_workers=1))
    assert torch.equal(torch.cat([images for images, _ in batches]), train.batch(torch.arange(4))[0])


@pytest.mark.parametrize("place", ["train", "test"])
def test_an_image_of_another_size_is_named(tmp_path: Path, place: str) -> None:
    write(tmp_path)
    save(tmp_path / place / "dog" / "odd.png", [1, 2, 3], size=5)
    with pytest.raises(UsageError, match=r"odd\.png: is 5x5 pixels, but the first training image is 4x4; resize"):
        load_data(tmp_path).test[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read as an image"),
        (lambda data: b"", "no image format that Pillow knows"),
        (lambda data: b"<html>", "no image format that Pillow knows"),
        (lambda data: data[:40] + b"\x00" * 40 + data[80:], "cannot be read as an image"),
    ],
    ids=["truncated", "empty", "html", "overwritten"],
)
def test_an_unreadable_image_is_named(tmp_path: Path, damage: object, says: str) -> None:
    write(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UsageError, match=rf"1\.png: .*{says}.*; repair or remove it") as caught:
        load_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").touch()
    with pytest.raises(UsageError, match=r"train: has no class folders; put the images into one folder for each class"):
        load_data(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(tmp_path: Path, split: str) -> None:
    write(tmp_path)
    (tmp_path / split / "emu").mkdir()
    with pytest.raises(UsageError, match=rf"{split}/emu: has no images \("):
        load_data(tmp_path)


def test_splits_of_other_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "emu")
    with pytest.raises(UsageError, match=r"test: lacks dog and has besides emu, compared with .*train; both need"):
        load_data(tmp_path)
