"""Artifact to bytes: a safetensors file whose every byte follows from its content."""

import hashlib
import json
from pathlib import Path

import numpy as np

from bnnconvert.artifact.schema import (
    DTYPES,
    FORMAT,
    GOLDEN_OUTPUT,
    MAJOR,
    MINOR,
    TEXTS,
    Array,
    Artifact,
    golden_input,
)

UNSIGNED = "0" * 64


def to_bytes(artifact: Artifact) -> bytes:
    """Content of the file. The same artifact always gives the same bytes."""
    tensors = _in_order(all_tensors(artifact))
    header: dict[str, object] = {"__metadata__": _metadata(artifact)}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _dtype_name(array), "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join([len(text).to_bytes(8, "little"), text, *(_little(a).tobytes() for a in tensors.values())])
    signed = hashlib.sha256(content).hexdigest().encode()
    key = b'"sha256":"'
    return content.replace(key + UNSIGNED.encode(), key + signed, 1)


def write(artifact: Artifact, path: Path) -> None:
    """Write the file to a path that nobody reads yet; `values.files.atomic_write` gives one."""
    path.write_bytes(to_bytes(artifact))


def all_tensors(artifact: Artifact) -> dict[str, Array]:
    """Everything that the data section holds: the program's tensors and the golden pair."""
    golden = {GOLDEN_OUTPUT.format(i): a for i, a in enumerate(artifact.golden_outputs)}
    golden |= {golden_input(i): a for i, a in enumerate(artifact.golden_inputs)}
    return {**artifact.tensors, **golden}


def _metadata(artifact: Artifact) -> dict[str, str]:
    facts = artifact.metadata.model_dump(mode="json")
    texts = {key: value if key in TEXTS else json.dumps(value, sort_keys=True) for key, value in facts.items()}
    program = artifact.program.to_json()
    return {"format": FORMAT, "format_version": f"{MAJOR}.{MINOR}", "program": program, "sha256": UNSIGNED, **texts}


def _in_order(tensors: dict[str, Array]) -> dict[str, Array]:
    """Wide elements first, so that each tensor is aligned; then by name."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _dtype_name(array: Array) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == _little(array).dtype)


def _little(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
