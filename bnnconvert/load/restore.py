"""After a restricted read: put the real classes in for their stand-ins, and check that the modules are plain modules.

A module's behaviour must be its library's code. So an attribute may not replace a method (`forward`, say), and no
hooks may be attached: torch would call them, and tracing would silently drop them.
"""

from typing import Any

from torch import nn

from bnnconvert.errors import RefusalError
from bnnconvert.load.allowed import Named, StoredPartial

_OWN = ("_parameters", "_buffers", "_modules")


def restore(content: Any, *, where: str) -> Any:
    """`content` with every stand-in replaced, in place where it can be.

    Raises: RefusalError naming a module that is not a plain one.
    """
    return _restore(content, set(), where)


def _restore(value: Any, seen: set[int], where: str) -> Any:
    if isinstance(value, Named):
        return value.found
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_restore(item, seen, where) for item in value)
    if id(value) in seen:
        return value
    if isinstance(value, nn.Module | dict | list | StoredPartial):
        seen.add(id(value))
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _restore(value[key], seen, where)
    elif isinstance(value, list):
        value[:] = [_restore(item, seen, where) for item in value]
    elif isinstance(value, StoredPartial):
        value.function = _restore(value.function, seen, where)
        value.state = _restore(value.state, seen, where)
    elif isinstance(value, nn.Module):
        _check(value, where)
        _restore(vars(value), seen, where)
    return value


def _check(module: nn.Module, where: str) -> None:
    """Refuse a module that has lost its tables, carries hooks, or has a method replaced by an attribute."""
    attributes = vars(module)
    kind = type(module)
    if any(not isinstance(attributes.get(name), dict) for name in _OWN):
        raise RefusalError(f"{where}: its {kind.__name__} is incomplete; the file is damaged, save the model again.")
    for name, value in attributes.items():
        if name.endswith("_hooks") and value:
            _refuse(where, f"its {kind.__name__} has hooks attached ({name})")
        replaces = callable(getattr(kind, name, None)) or (name == "_compiled_call_impl" and value is not None)
        if replaces or (name.startswith("__") and name.endswith("__")):
            _refuse(where, f"in its {kind.__name__} an attribute replaces the method {name}")


def _refuse(where: str, what: str) -> None:
    raise RefusalError(
        f"{where}: {what}, so it does not do what its class says; save a plain module, or load a state dict with "
        "--model package.module:factory."
    )
