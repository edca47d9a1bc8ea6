import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from bnnconvert.errors import UsageError
from bnnconvert.load.data import load_data
from bnnconvert.load.idx import read_idx


def idx(values: np.ndarray, *, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def pixels(count: int, size: int = 3) -> np.ndarray:
    return np.arange(count * size * size, dtype=np.uint8).reshape(count, size, size)


def write(folder: Path, *, head: str = "", test: str = "t10k", zipped: bool = True, count: int = 5) -> None:
    for part, n in (("train", count), (test, 2)):
        for what, values in (("images-idx3", pixels(n)), ("labels-idx1", np.arange(n, dtype=np.uint8))):
            data = idx(values)
            name = f"{head}{part}-{what}-ubyte{'.gz' if zipped else ''}"
            (folder / name).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("head", "test"), [("", "t10k"), ("emnist-letters-", "test")])
def test_a_folder_of_the_mnist_family_is_read(tmp_path: Path, zipped: bool, head: str, test: str) -> None:
    write(tmp_path, head=head, test=test, zipped=zipped)
    data = load_data(tmp_path)
    assert data.test is not None
    assert data.train.labels is not None
    assert (len(data.train), len(data.test)) == (5, 2)
    assert data.sample_shape == (1, 3, 3)
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4]
    image, label = data.train[3]
    assert label == 3
    assert torch.equal(image, torch.from_numpy(pixels(5)[3:4]))
    assert data.mean[0] == pytest.approx(22 / 255)


def test_the_old_spelling_with_a_dot_is_known(tmp_path: Path) -> None:
    write(tmp_path, zipped=False)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(load_data(tmp_path).train) == 5


def test_the_plain_file_is_taken_where_there_are_both(tmp_path: Path) -> None:
    write(tmp_path, zipped=False)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert len(load_data(tmp_path).train) == 5


def test_a_test_split_is_not_needed(tmp_path: Path) -> None:
    write(tmp_path)
    for path in tmp_path.glob("t10k*"):
        path.unlink()
    assert load_data(tmp_path).test is None


def test_several_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, head="emnist-letters-")
    write(tmp_path, head="emnist-digits-")
    with pytest.raises(UsageError, match=r"holds several data sets \(emnist-digits-, emnist-letters-\)"):
        load_data(tmp_path)


@pytest.mark.parametrize("missing", ["train-images-idx3", "train-labels-idx1", "t10k-labels-idx1"])
def test_a_missing_partner_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path)
    (tmp_path / f"{missing}-ubyte.gz").unlink()
    part, what, _ = missing.split("-")
    with pytest.raises(UsageError, match=f"has no IDX file with the {'train' if part == 'train' else 'test'} {what}"):
        load_data(tmp_path)


def test_labels_of_another_number_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    with pytest.raises(UsageError, match=r"has 4 labels for the 5 images of train-images"):
        load_data(tmp_path)


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels(2, 2))))
    with pytest.raises(UsageError, match="the test images are 2x2, but the training images are 3x3"):
        load_data(tmp_path)


GOOD = idx(pixels(5))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a", b"", "begins with nothing instead of 00000803"),
        ("a", b"\x89PNG" + GOOD, "begins with 89504e47 instead of 00000803"),
        ("a", idx(np.zeros(5, np.uint8)), "begins with 00000801 instead of 00000803"),
        ("a", idx(pixels(5), kind=13), "begins with 00000d03"),
        ("a", GOOD[:9], "has a damaged header"),
        ("a", GOOD[:4] + b"\xff" * 12, "has a damaged header"),
        ("a", GOOD[:-1], "holds 44 values, but its header says 45"),
        ("a", GOOD + b"x", "holds more than 45 values, but its header says 45"),
        ("a", idx(pixels(0)), "is empty"),
        ("a.gz", GOOD, "is no complete gzip file"),
        ("a.gz", gzip.compress(GOOD)[:-12], "is no complete gzip file"),
        ("a.gz", gzip.compress(GOOD)[:-8] + b"\xff" * 8, "is no complete gzip file"),
    ],
    ids=range(12),
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"{name}: {says}"):
        read_idx(tmp_path / name, dimensions=3)
