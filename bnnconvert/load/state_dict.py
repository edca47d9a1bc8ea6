"""Put a file's tensors into the user's module, strictly: every name and every shape must agree."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from bnnconvert.errors import UsageError

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
_NAMED = 3


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises: UsageError where it is damaged.
    """
    try:
        return dict(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise UsageError(f"{path}: is damaged or not complete ({error}); copy or download it again.") from error


def is_state_dict(content: object) -> bool:
    """Whether this is a mapping from names to tensors, as `Module.state_dict()` gives it."""
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, Tensor) for value in content.values())
        and all(
            isinstance(key, str) and (isinstance(value, Tensor) or key.endswith("_extra_state"))
            for key, value in content.items()
        )
    )


def fill(module: nn.Module, tensors: Mapping[str, Any], *, where: str, factory: str) -> None:
    """Load `tensors` into `module`; a prefix that wrappers put before every name (`module.`, `model.`) is taken off.

    Raises: UsageError naming the first missing, unexpected and mis-shaped names.
    """
    own = module.state_dict()
    tensors = _without_prefix(tensors, own)
    shaped = [
        f"{name} is {_shape(tensors[name])} in the file but {_shape(own[name])} in the module"
        for name in own
        if isinstance(tensors.get(name), Tensor) and tensors[name].shape != own[name].shape
    ]
    missing: list[str] = []
    unexpected: list[str] = []
    if not shaped:
        # torch itself fills in what older versions did not save, such as num_batches_tracked
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    else:
        unexpected = [name for name in tensors if name not in own]
        missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    parts = [
        f"{len(names)} {what} ({_first(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if names
    ]
    if parts:
        raise UsageError(
            f"{where}: its tensors do not fit {factory}: {', '.join(parts)}; give the factory of the network that was "
            "saved."
        )


def _without_prefix(tensors: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """The tensors under the module's own names, if taking off known prefixes leads there; else as they are."""
    own = set(own)
    stripped = dict(tensors)
    while not own & set(stripped):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in stripped)), None)
        if prefix is None:
            return dict(tensors)
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
