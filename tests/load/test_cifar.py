import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bnnconvert.errors import BnnError, RefusalError, UsageError
from bnnconvert.load.data import load_data


def as_python_2_wrote(value: object) -> bytes:
    """The pickle with numpy's old module name, which the published batches carry."""
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def pixels(count: int, first: int) -> np.ndarray:
    return np.random.default_rng(first).integers(0, 256, (count, 3072), dtype=np.uint8)


def write_cifar10(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(1, 6):
        content = {b"data": pixels(3, i), b"labels": [i, i, 0], b"batch_label": b"x", b"filenames": [b"a"] * 3}
        (folder / f"data_batch_{i}").write_bytes(as_python_2_wrote(content))
    (folder / "test_batch").write_bytes(as_python_2_wrote({b"data": pixels(2, 9), b"labels": [7, 8]}))
    (folder / "batches.meta").write_bytes(as_python_2_wrote({b"label_names": [b"cat", b"dog"], b"num_vis": 3072}))


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
def test_cifar_10_is_read_in_order(tmp_path: Path, subfolder: str) -> None:
    write_cifar10(tmp_path / subfolder)
    data = load_data(tmp_path)
    assert data.test is not None
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [1, 1, 0, 2, 2, 0, 3, 3, 0, 4, 4, 0, 5, 5, 0]
    assert torch.equal(data.train[4][0], torch.from_numpy(pixels(3, 2)[1].reshape(3, 32, 32)))
    assert data.test[1][1] == 8
    assert data.classes == ("cat", "dog")
    assert data.sample_shape == (3, 32, 32)


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    for name in ("train", "test"):
        content = {"data": pixels(2, 1), "fine_labels": [99, 3], "coarse_labels": [1, 2]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple"], "coarse_label_names": ["fruit"]}))
    data = load_data(tmp_path)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [99, 3]
    assert data.classes == ("apple",)


def test_labels_may_be_an_array_and_images_in_columns(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    content = {"data": np.asfortranarray(pixels(3, 1)), "labels": np.array([1, 2, 3])}
    (tmp_path / "data_batch_1").write_bytes(as_python_2_wrote(content))
    data = load_data(tmp_path)
    assert [data.train[i][1] for i in range(3)] == [1, 2, 3]
    assert torch.equal(data.train[2][0].flatten(), torch.from_numpy(pixels(3, 1)[2]))


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_batch_that_runs_a_command_is_refused_and_does_not_run(tmp_path: Path, file: str, protocol: int) -> None:
    write_cifar10(tmp_path)
    canary = tmp_path / "code-ran"
    content = {"data": pixels(1, 1), "labels": Calls(os.system, f"touch {canary}")}
    (tmp_path / file).write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(RefusalError, match=rf"{file}: is no plain CIFAR batch, reading it stopped at the name \w+\."):
        load_data(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, object), np.zeros(2, np.float32), np.zeros(2, [("a", "u1")]), np.float64(1), getattr],
    ids=["objects", "floats", "records", "scalar", "function"],
)
def test_other_numpy_objects_are_refused(tmp_path: Path, value: object) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(as_python_2_wrote({"data": value, "labels": [1]}))
    with pytest.raises(RefusalError, match="is no plain CIFAR batch"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"data": pixels(2, 1)},
        {"data": pixels(2, 1), "labels": [1]},
        {"data": pixels(2, 1), "labels": ["a", "b"]},
        {"data": pixels(2, 1), "labels": 3},
        {"data": pixels(2, 1)[:, :100].copy(), "labels": [1, 2]},
        {"data": pixels(2, 1).astype(np.int64), "labels": [1, 2]},
        {"data": b"abc", "labels": [1, 2]},
    ],
    ids=range(9),
)
def test_other_content_is_no_batch(tmp_path: Path, content: object) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(as_python_2_wrote(content))
    with pytest.raises(UsageError, match=r"data_batch_2: is no CIFAR batch"):
        load_data(tmp_path)


def test_a_lying_array_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    good = as_python_2_wrote({"data": pixels(2, 1), "labels": [1, 2]})
    lying = good.replace(b"K\x02M\x00\x0c\x86", b"K\xffM\x00\x0c\x86")
    assert lying != good
    (tmp_path / "data_batch_1").write_bytes(lying)
    with pytest.raises(UsageError, match="data_batch_1: is damaged or not complete"):
        load_data(tmp_path)


@pytest.mark.parametrize("file", ["data_batch_4", "test_batch"])
def test_a_missing_batch_is_named(tmp_path: Path, file: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UsageError, match=f"{file}: is missing"):
        load_data(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 10, 3000, -1])
def test_a_truncated_batch_is_named(tmp_path: Path, cut: int) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_5"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BnnError, match="data_batch_5: is"):
        load_data(tmp_path)


def test_names_of_classes_are_optional_but_must_be_a_list(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": 3}))
    with pytest.raises(UsageError, match=r"batches\.meta: has no list of label_names"):
        load_data(tmp_path)
    (tmp_path / "batches.meta").unlink()
    assert load_data(tmp_path).classes is None
