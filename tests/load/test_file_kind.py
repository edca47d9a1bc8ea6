import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnnconvert.errors import BnnError, RefusalError, UsageError
from bnnconvert.load.file_kind import recognise
from bnnconvert.load.model import load_model


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(1)}, tmp_path / "c.pt")
    assert [recognise(tmp_path / n) for n in ("a.bin", "b.pth", "c.pt")] == [
        "checkpoint",
        "old checkpoint",
        "safetensors",
    ]


def scripted(path: Path) -> None:
    torch.jit.script(nn.ReLU()).save(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def broken_zip(path: Path) -> None:
    torch.save(nn.Linear(20, 20), path)
    path.write_bytes(path.read_bytes()[:900])


def broken_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "write", "error", "says"),
    [
        ("m.pt", None, UsageError, "there is no such file; give a model file"),
        ("m.pt", Path.mkdir, UsageError, "is a folder; give a model file"),
        ("m.pt", Path.touch, UsageError, "is empty; save the model again"),
        ("m.pt", lambda p: p.write_text("import torch\n"), UsageError, "is not a model file; give what torch.save"),
        ("m.pt", zipped, UsageError, "is a zip file, but not one that torch.save wrote"),
        ("m.pt", broken_zip, UsageError, "is damaged or not complete"),
        ("m.safetensors", broken_safetensors, UsageError, "is damaged or not complete"),
        ("m.safetensors", lambda p: p.write_bytes(b"\xff" * 40), UsageError, "is no complete safetensors file"),
        ("m.pt", scripted, RefusalError, "is a TorchScript archive, .*torch.save.*--model"),
        ("m.onnx", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), RefusalError, "is an ONNX file, .*--model"),
        ("m.pt", lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch"), RefusalError, "is an ONNX file"),
    ],
)
def test_what_is_no_model_is_one_sentence_with_a_way_out(
    tmp_path: Path, name: str, write: object, error: type[BnnError], says: str
) -> None:
    path = tmp_path / name
    if callable(write):
        write(path)
    with pytest.raises(error, match=f"{name}: {says}") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
