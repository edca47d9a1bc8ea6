"""The outer shell of an artifact: a safetensors file, read with every field checked before it is used."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from bnnconvert.artifact.schema import DTYPES, FORMAT, MAJOR, MAX_DEPTH, MAX_HEADER, MAX_TENSORS, Array
from bnnconvert.errors import ArtifactError

FETCH = "; fetch or export it again"
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True)
class Container:
    """Metadata texts and tensors of a file of ours, its hash checked."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Array]


def open_container(content: bytes, where: str) -> Container:
    """Parse the content of the file `where`.

    Raises: ArtifactError naming the file and the defect.
    """
    header, data = _split(content, where)
    table = parse_json(header, f"{where}: its header")
    if not isinstance(table, dict):
        raise ArtifactError(f"{where}: its header is not a JSON object, so this is not a packed model")
    metadata = _metadata(table.pop("__metadata__", None), where)
    if len(table) > MAX_TENSORS:
        raise ArtifactError(f"{where}: it lists {len(table)} tensors, more than {MAX_TENSORS}")
    spans = {name: _span(name, entry, where) for name, entry in table.items()}
    _check_spans(spans, len(data), where)
    _check_hash(content, len(header), metadata, where)
    tensors = {
        n: np.frombuffer(data[begin:end], dtype).reshape(shape) for n, (dtype, shape, begin, end) in spans.items()
    }
    return Container(metadata, tensors)


def parse_json(text: bytes | str, where: str) -> Any:
    """JSON with bounded depth, no repeated keys and no NaN; `where` names file and part."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where} is not UTF-8 text; this is not a packed model, or it is damaged") from error
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ArtifactError(
                f"{where} is nested more than {MAX_DEPTH} deep; this file was not written by bnnconvert"
            )
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except ValueError as error:  # JSONDecodeError, and ours from the hooks
        raise ArtifactError(
            f"{where} is not valid JSON ({error}); this is not a packed model, or it is damaged"
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _split(content: bytes, where: str) -> tuple[bytes, memoryview]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length < 2:
        raise ArtifactError(f"{where}: {len(content)} bytes without a safetensors header are not a packed model")
    if length > MAX_HEADER:
        raise ArtifactError(
            f"{where}: its header claims {length} bytes, more than {MAX_HEADER}, so this is not a packed model"
        )
    if 8 + length > len(content):
        raise ArtifactError(f"{where}: it is truncated inside its header ({len(content)} of {8 + length} bytes){FETCH}")
    return content[8 : 8 + length], memoryview(content)[8 + length :]


def _metadata(metadata: object, where: str) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ArtifactError(
            f"{where}: this is a safetensors file but not a packed model (metadata names no format {FORMAT!r}); "
            "`bnnconvert export --packed` writes one"
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ArtifactError(f"{where}: metadata {key!r} is not a string{FETCH}")
    version = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", metadata.get("format_version", ""))
    if version is None:
        raise ArtifactError(f"{where}: metadata 'format_version' is missing or not MAJOR.MINOR{FETCH}")
    if int(version[1]) != MAJOR:
        raise ArtifactError(
            f"{where}: it has format version {version[0]}, and this bnnconvert reads versions {MAJOR}.x; "
            "use the version that wrote it, or export it again"
        )
    return metadata


def _span(name: str, entry: object, where: str) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError(f"{where}: tensor {name!r} needs dtype, shape and data_offsets, and nothing else{FETCH}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise ArtifactError(
            f"{where}: tensor {name!r} has unknown dtype {entry['dtype']!r}; known: {', '.join(DTYPES)}"
        )
    shape, offsets = _sizes(entry["shape"]), _sizes(entry["data_offsets"])
    if shape is None or len(shape) > 16:
        raise ArtifactError(
            f"{where}: tensor {name!r} has shape {str(entry['shape'])[:80]}, not a list of sizes{FETCH}"
        )
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ArtifactError(f"{where}: tensor {name!r} has data_offsets that are not a beginning and an end{FETCH}")
    dtype = DTYPES[entry["dtype"]]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise ArtifactError(f"{where}: tensor {name!r} of shape {list(shape)} does not fill its data_offsets{FETCH}")
    return dtype, shape, offsets[0], offsets[1]


def _sizes(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value):
        return tuple(value)
    return None


def _check_spans(spans: Mapping[str, tuple[Any, Any, int, int]], size: int, where: str) -> None:
    """Data must be covered from its beginning to its end, without holes and overlaps."""
    end = 0
    for name, (_, _, begin, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != end:
            kind = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise ArtifactError(f"{where}: tensor {name!r} {kind}{FETCH}")
        end = stop
    if end > size:
        raise ArtifactError(f"{where}: it is truncated ({size} of {end} bytes of tensors){FETCH}")
    if end < size:
        raise ArtifactError(f"{where}: {size - end} bytes follow its last tensor{FETCH}")


def _check_hash(content: bytes, header: int, metadata: Mapping[str, str], where: str) -> None:
    """Check the SHA-256 of the whole file, in which the digits of the hash itself count as zeros."""
    stated = metadata.get("sha256", "")
    if re.fullmatch(r"[0-9a-f]{64}", stated) is None:
        raise ArtifactError(f"{where}: metadata 'sha256' is missing or not 64 lower-case hexadecimal digits{FETCH}")
    digits = stated.encode()
    if content.count(digits, 8, 8 + header) != 1:
        raise ArtifactError(f"{where}: the digits of its hash do not stand in its header exactly once{FETCH}")
    at = content.index(digits, 8)
    view = memoryview(content)
    actual = hashlib.sha256(view[:at])
    actual.update(b"0" * 64)
    actual.update(view[at + 64 :])
    if actual.hexdigest() != stated:
        raise ArtifactError(f"{where}: its SHA-256 does not match its content, so it is damaged{FETCH}")
