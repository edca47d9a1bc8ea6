import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bnnconvert.errors import UsageError
from bnnconvert.load.data import SOURCES, load_data
from bnnconvert.load.statistics import channel_statistics
from bnnconvert.values.data import Images
from bnnconvert.values.inputs import InputSpec

UserModule = Callable[[str, str], None]


def save(path: Path, values: int | list[int], size: int = 4) -> None:
    """A png of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size) if isinstance(values, int) else (size, size, 3)
    Image.fromarray(np.full(shape, values, np.uint8)).save(path)


@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
    top=st.sampled_from([1, 2, 256]),
)
@settings(max_examples=30, deadline=None)
def test_statistics_are_those_of_all_pixels(count: int, channels: int, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, top, (count, channels, 3, 5), generator=generator, dtype=torch.uint8)
    mean, std = channel_statistics(Images(images, torch.zeros(count, dtype=torch.int64)), whole=True)
    exact = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean), exact.mean((0, 2, 3)).float())
    spread = exact.std((0, 2, 3), correction=0).float()
    torch.testing.assert_close(torch.tensor(std), torch.where(spread == 0, torch.ones(()), spread))


def test_statistics_do_not_depend_on_how_images_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = channel_statistics(Images(images, torch.zeros(50, dtype=torch.int64)), whole=True)
    monkeypatch.setattr("bnnconvert.load.statistics._VALUES_AT_ONCE", 100)
    assert channel_statistics(Images(images, torch.zeros(50, dtype=torch.int64)), whole=True) == whole


def test_digits_are_split_evenly_and_always_the_same() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert data.test is not None
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.classes == tuple("0123456789")
    assert (data.sample_shape, data.scale, data.source) == ((1, 8, 8), "uint8", "digits")
    share = data.test.labels.bincount() / (data.train.labels.bincount() + data.test.labels.bincount())
    assert share.sub(0.2).abs().max() < 0.005
    again = load_data("digits")
    assert torch.equal(again.train.batch(torch.arange(5))[0], data.train.batch(torch.arange(5))[0])
    images, _ = data.train.batch(torch.arange(100))
    assert images.dtype == torch.uint8
    assert int(images.max()) == 255
    assert 0.25 < data.mean[0] < 0.35


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"needs scikit-learn; pip install bnnconvert\[digits\]"):
        load_data("digits")


def test_the_name_digits_does_not_mean_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "digits" / "train" / "a" / "1.png", 7)
    assert load_data("digits").sample_shape == (1, 8, 8)
    assert load_data("./digits").sample_shape == (1, 4, 4)


def test_given_statistics_are_used_and_nothing_is_decoded_for_them(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "1.png", [1, 2, 3])
    (tmp_path / "train" / "a" / "2.png").write_bytes((tmp_path / "train" / "a" / "1.png").read_bytes()[:50])
    with pytest.raises(UsageError, match=r"2\.png: cannot be read"):
        load_data(tmp_path)
    data = load_data(tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.5,), None, "--mean and --std belong together"),
        (None, (0.5,), "--mean and --std belong together"),
        ((0.5, 0.5), (1.0,), "--mean has 2 numbers, but the images have 1 channel"),
        ((0.5,), (1.0, 1.0, 1.0), "--std has 3 numbers, but the images have 1 channel"),
        ((0.5,), (0.0,), "--std greater than 0"),
        ((float("nan"),), (1.0,), "--mean must be finite"),
    ],
)
def test_wrong_statistics_are_refused(
    tmp_path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, says: str
) -> None:
    save(tmp_path / "train" / "a" / "1.png", 7)
    with pytest.raises(UsageError, match=says):
        load_data(tmp_path, mean=mean, std=std)


def test_what_is_no_data_says_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no such folder; give a folder, the name digits, or package"):
        load_data(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds no data in a known form; it needs train/CLASS"):
        load_data(tmp_path)
    (tmp_path / "a.tar.xz").touch()
    with pytest.raises(UsageError, match=r"a\.tar\.xz: is a file; unpack it"):
        load_data(tmp_path / "a.tar.xz")


def test_every_source_is_tried_on_every_kind_of_name_and_at_most_one_wants_it(tmp_path: Path) -> None:
    save(tmp_path / "folder" / "train" / "a" / "1.png", 7)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte.gz").touch()
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1").touch()
    specs = ["digits", "a.b:c", str(tmp_path / "idx"), str(tmp_path / "cifar"), str(tmp_path / "folder")]
    wanted = {spec: [name for name, source in SOURCES.items() if source.recognises(spec)] for spec in specs}
    assert list(wanted.values()) == [[name] for name in SOURCES]
    assert not any(source.recognises(str(tmp_path / "missing")) for source in SOURCES.values())


FACTORY = """
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

class Pairs(Dataset):
    classes = ["cat", "dog"]
    def __init__(self, image, label=1, count=4):
        self.image, self.label, self.count = image, label, count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return self.image, self.label

class Stream(IterableDataset):
    def __iter__(self):
        yield 1

class Broken(Pairs):
    def __getitem__(self, index):
        raise OSError("disk on fire")

image = torch.linspace(-1, 1, 12).view(3, 2, 2)
bytes_ = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
def floats(): return Pairs(image), Pairs(image, torch.tensor(0))
def uint8(): return Pairs(bytes_), None
def one(): return Pairs(image)
def number(): return 3
def stream(): return Stream(), None
def empty(): return Pairs(image, count=0), None
def broken(): return Broken(image), None
def scalar(): return Pairs(image.sum()), None
def array(): return Pairs(image.numpy()), None
def complexes(): return Pairs((image, image.to(torch.complex64))), None
def tokens(): return Pairs(torch.tensor([4, 0, 6])), None
def several(): return Pairs([image, torch.tensor([4, 0, 6]), bytes_]), Pairs((image, torch.tensor([9, 9, 9]), bytes_))
def single(): return [image, image], None
def onehot(): return Pairs(image, torch.tensor([0, 1])), None
def fraction(): return Pairs(image, 0.5), None
def differ(): return Pairs(image), Pairs(image[:, :1])
def kinds(): return Pairs(image), Pairs(bytes_)
def tensors():
    data = TensorDataset(image.expand(4, 3, 2, 2), torch.arange(4))
    data.targets = [0, 1, 2, 3]
    return data, None
"""


def test_a_factory_of_float_images_is_left_as_it_is(user_module: UserModule) -> None:
    user_module("data_floats", FACTORY)
    data = load_data("data_floats:floats")
    assert data.test is not None
    assert (data.scale, data.mean, data.std, data.classes) == ("as-is", (), (), ("cat", "dog"))
    assert data.sample_shape == (3, 2, 2)
    assert torch.equal(data.train[0][0].flatten(), torch.linspace(-1, 1, 12))
    assert [data.train[0][1], data.test[0][1]] == [1, 0]
    assert type(data.test[0][1]) is int
    with pytest.raises(UsageError, match="is no uint8 image, which is not normalised again; leave out --mean"):
        load_data("data_floats:floats", mean=(0, 0, 0), std=(1, 1, 1))


def test_a_factory_of_uint8_images_is_normalised_like_a_folder(user_module: UserModule) -> None:
    user_module("data_uint8", FACTORY)
    data = load_data("data_uint8:uint8")
    assert data.test is None
    assert data.scale == "uint8"
    torch.testing.assert_close(torch.tensor(data.mean), torch.tensor([1.5, 5.5, 9.5]) / 255)


def test_a_factory_that_knows_its_labels_gives_them(user_module: UserModule) -> None:
    user_module("data_labels", FACTORY)
    data = load_data("data_labels:tensors")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 1, 2, 3]
    assert load_data("data_labels:floats").train.labels is None


def test_a_factory_may_give_tokens_or_several_tensors(user_module: UserModule) -> None:
    user_module("data_any", FACTORY)
    tokens = load_data("data_any:tokens")
    assert (tokens.scale, tokens.specs) == ("as-is", (InputSpec(shape=(1, 3), dtype="int64", below=7),))
    assert torch.equal(tokens.inputs(tokens.train, torch.tensor([0, 2])), torch.tensor([[4, 0, 6]] * 2))
    several = load_data("data_any:several")
    assert [(s.shape, s.dtype) for s in several.specs] == [
        ((1, 3, 2, 2), "float32"),
        ((1, 3), "int64"),
        ((1, 3, 2, 2), "uint8"),
    ]
    image, numbers, pixels = several.inputs(several.train, torch.tensor([0, 1, 2]))
    assert (image.shape, numbers.tolist(), pixels.dtype) == ((3, 3, 2, 2), [[4, 0, 6]] * 3, torch.uint8)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", r"gave a Pairs; it must return a pair of data sets \(train, validation\)"),
        ("number", r"gave a int; it must return a pair"),
        ("stream", r"the training set is a Stream; it must have a length and numbered items"),
        ("empty", r"the training set is empty"),
        ("broken", r"reading the first sample failed \(OSError: disk on fire\)"),
        ("scalar", r"an input is one number; it must be a tensor with an axis or more"),
        ("array", r"an input is a ndarray; it must be a tensor of floats or integers"),
        ("complexes", r"an input is a tensor of torch.complex64; it must be"),
        ("single", r"a sample is a Tensor; it must be a pair \(input, label\)"),
        ("onehot", r"a label is tensor\(\[0, 1\]\); it must be one whole number"),
        ("fraction", r"a label is 0.5; it must be one whole number"),
        ("differ", r"training samples are 3x2x2 of float32, but validation samples are 3x1x2 of float32"),
        ("kinds", r"training samples are 3x2x2 of float32, but validation samples are 3x2x2 of uint8"),
        ("missing", r"has no 'missing'"),
    ],
)
def test_a_factory_that_gives_something_else_is_told_so(user_module: UserModule, name: str, says: str) -> None:
    user_module("data_bad", FACTORY)
    with pytest.raises(UsageError, match=f"^data_bad:{name}: .*{says}") as caught:
        load_data(f"data_bad:{name}")
    assert "\n" not in str(caught.value)
