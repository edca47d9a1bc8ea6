"""Tell what a model file is, from its first bytes; refuse, with the way out, what is no module and no state dict."""

import zipfile
from pathlib import Path
from typing import Literal

from bnnconvert.errors import RefusalError, UsageError

Kind = Literal["checkpoint", "old checkpoint", "safetensors", "exported"]

_CODE = "--model package.module:factory"
_GIVE = "give a model file (.pt, .pth, .pt2, .safetensors) or package.module:factory"


def recognise(path: Path) -> Kind:
    """Kind of a model file: torch's zip, its pickle of before version 1.6, safetensors, or torch.export's archive.

    Raises: UsageError where it is no model file, RefusalError where it is one that holds no trainable module.
    """
    head = _head(path)
    if head[:2] == b"PK":
        return _zip_kind(path)
    if head[:1] == b"\x80":
        return "old checkpoint"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size:
        return "safetensors"
    if path.suffix == ".safetensors":
        raise UsageError(f"{path}: is no complete safetensors file; copy or download it again.")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"\x12" in head[2:4]):
        raise RefusalError(
            f"{path}: is an ONNX file, whose layers cannot be trained; give the PyTorch module it was exported from, "
            f"as torch.save(model, 'model.pt') or {_CODE}."
        )
    raise UsageError(
        f"{path}: is not a model file; give what torch.save(model, ...) or torch.export.save wrote, a state dict (.pt, "
        ".pth, .safetensors) with --model, or package.module:factory."
    )


def _head(path: Path) -> bytes:
    """The first bytes of a file that must exist and hold something."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; {_GIVE}.")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file; {_GIVE}.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    if not head:
        raise UsageError(f"{path}: is empty; save the model again.")
    return head


def _zip_kind(path: Path) -> Kind:
    """A checkpoint of torch, told from its other archives by the records inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UsageError(f"{path}: is damaged or not complete; copy or save it again.") from error
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        raise RefusalError(
            f"{path}: is a TorchScript archive, whose layers are no longer modules; give the PyTorch module it was "
            f"made from, as torch.save(model, 'model.pt') or torch.export.save writes it, or with {_CODE}."
        )
    if "data.pkl" in records:
        return "checkpoint"
    if "archive_format" in records or any(name.startswith("models/") for name in records):
        return "exported"
    raise UsageError(f"{path}: is a zip file, but not one that torch.save wrote; give the model file itself.")
