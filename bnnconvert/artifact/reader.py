"""Bytes to artifact. Trusts nothing: each defect has its own sentence, with the file's name in front."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bnnconvert.artifact.checks import check_program
from bnnconvert.artifact.container import FETCH, Container, open_container, parse_json
from bnnconvert.artifact.schema import (
    FORMAT,
    GOLDEN,
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    MAX_HEADER,
    TEXTS,
    Array,
    Artifact,
    Metadata,
    golden_input,
)
from bnnconvert.errors import ArtifactError, UsageError
from bnnconvert.values.program import Program


def read(path: str | Path) -> Artifact:
    """The artifact in a file.

    Raises: UsageError where there is no readable file, ArtifactError where it is not a sound artifact.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); name a file that `bnnconvert export` wrote"
        ) from error
    return from_bytes(content, str(path))


def is_artifact(path: Path) -> bool:
    """Whether a file claims to be of our format; whether it is sound only `read` can tell."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return f'"format":"{FORMAT}"'.encode() in file.read(min(length, MAX_HEADER))
    except OSError:
        return False


def from_bytes(content: bytes, where: str) -> Artifact:
    """The artifact in the content of the file `where`.

    Raises: ArtifactError naming the file and the defect.
    """
    container = open_container(content, where)
    metadata = _metadata(container, where)
    program = _program(container, where)
    tensors = {name: array for name, array in container.tensors.items() if not name.startswith(GOLDEN)}
    check_program(program, tensors, where)
    return Artifact(program, tensors, metadata, *_golden(container, program, where))


def _metadata(container: Container, where: str) -> Metadata:
    """Our fields; keys that a later minor version added are ignored."""
    facts: dict[str, Any] = {}
    for key in Metadata.model_fields:
        if key not in container.metadata:
            raise ArtifactError(f"{where}: metadata {key!r} is missing{FETCH}")
        text = container.metadata[key]
        facts[key] = text if key in TEXTS else parse_json(text, f"{where}: metadata {key!r}")
    try:
        return Metadata.model_validate(facts, strict=False)
    except ValidationError as error:
        raise ArtifactError(f"{where}: metadata {_first(error)}{FETCH}") from error


def _program(container: Container, where: str) -> Program:
    text = container.metadata.get("program")
    if text is None:
        raise ArtifactError(f"{where}: metadata 'program' is missing{FETCH}")
    parse_json(text, f"{where}: its program")
    try:
        return Program.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{where}: its program is malformed at {_first(error)}{FETCH}") from error


def _golden(container: Container, program: Program, where: str) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    specs = program.specs()
    wanted = {golden_input(i): spec for i, spec in enumerate(program.inputs)}
    wanted |= {GOLDEN_OUTPUT.format(i): specs[name] for i, name in enumerate(program.output.values())}
    stored = {name: array for name, array in container.tensors.items() if name.startswith(GOLDEN)}
    if set(stored) != set(wanted):
        odd = sorted(set(stored) ^ set(wanted))[0]
        raise ArtifactError(
            f"{where}: tensor {odd!r} is {'missing' if odd in wanted else 'not one of the golden tensors'}{FETCH}"
        )
    first = stored[GOLDEN_INPUT]
    batch = first.shape[0] if first.ndim else 0
    for name, spec in wanted.items():
        array = stored[name]
        if batch < 1 or array.dtype.name != spec.dtype or array.shape != spec.sized(batch):
            raise ArtifactError(f"{where}: tensor {name!r} has not the type and shape that the program declares{FETCH}")
    arrays = tuple(stored[name] for name in wanted)
    return arrays[: len(program.inputs)], arrays[len(program.inputs) :]


def _first(error: ValidationError) -> str:
    """Where the first defect is and what it is."""
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc']))[:200]} ({detail['msg']})"
