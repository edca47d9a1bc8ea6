"""Read a torch.export archive without the user's code, and nothing in it that could run any.

An archive holds a graph as JSON, raw weights, sample inputs as a checkpoint, and on request compiled libraries and
pickled objects. The last two are refused. Sizes stand in it as text that torch evaluates, so that each must be made of
a few known words.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.export import ExportedProgram

from bnnconvert.errors import RefusalError, UsageError, first_line

_PLAIN = ("data/weights/", "data/constants/", "data/sample_inputs/", "models/", ".data/", "extra/")
_PLAIN_FILES = {"archive_format", "archive_version", "byteorder", "version"}
_OBJECTS = ("custom_obj_", "opaque_obj_")
_SIZE_WORDS = {"Symbol", "positive", "nonnegative", "integer", "True", "False", "Integer", "Add", "Mul", "Pow"}
_SIZE_WORDS |= {"FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "Max", "Min", "ModularIndexing"}
_SIZE = re.compile(r"[\w '=,()+\-*/]*")


def read_exported(path: Path, *, trusted: bool = False) -> ExportedProgram:
    """The program of an archive.

    Raises: UsageError where it is damaged, RefusalError where it holds what only running code could restore.
    """
    try:
        if not trusted:
            _require_plain(path)
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path}: cannot be read as a torch.export archive ({first_line(error)}); export the model again, with "
            f"torch {torch.__version__}."
        ) from error


def _require_plain(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            record = name.partition("/")[2]
            if not record.startswith(_PLAIN) and record not in _PLAIN_FILES:
                raise RefusalError(f"{path}: holds {record}, which is no part of a graph; export the model alone.")
            if record.endswith(".json"):
                _require_plain_text(path, json.loads(archive.read(name)))
            elif record.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except UnpicklingError as error:
                    raise RefusalError(
                        f"{path}: its sample inputs are more than tensors, so that reading them could run code; export "
                        "the model with tensors alone, or give --trust-pickle for a file that you trust."
                    ) from error


def _require_plain_text(path: Path, content: Any) -> None:
    for key, text in _texts(content):
        if key == "expr_str":
            words = re.findall(r"[A-Za-z_]\w*", text)
            if not _SIZE.fullmatch(text) or not all(w in _SIZE_WORDS or re.fullmatch(r"[suz]\w?\d+", w) for w in words):
                raise RefusalError(f"{path}: the size {text!r} is not made of numbers and symbols; export it again.")
        elif text.startswith(_OBJECTS):
            raise RefusalError(
                f"{path}: holds objects beside tensors, which only running code could restore; export the model "
                "without them, or give --trust-pickle for a file that you trust."
            )


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, with the key that it stands under."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _texts(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content
