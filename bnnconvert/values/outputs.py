"""What models return, in plain containers."""

import dataclasses
from typing import Any


def as_plain(output: Any) -> Any:
    """A data class or named tuple as a dictionary of its fields; anything else as it is."""
    if dataclasses.is_dataclass(output) and not isinstance(output, type | dict):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return output._asdict() if isinstance(output, tuple) and hasattr(output, "_asdict") else output
