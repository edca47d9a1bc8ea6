"""Which classes and functions a pickled module may name, and what stands for them while the file is read.

A pickle is a program. Torch's restricted unpickler runs it with allow-listed names only, but for an allowed name the
program may (a) make an empty instance and set its attributes, (b) store the name itself as an attribute, (c) call it
with arguments of its choice. A saved module needs (a) and (b) only. So the unpickler never meets a class or function
itself but a `Named` stand-in, which can do (a) and (b) and refuses (c); `restore.py` puts the real ones in afterwards.

Allowed are the `nn.Module` classes of torch.nn, torchvision and timm that are created in the ordinary way (this leaves
out `fx.GraphModule` and its kin, which compile source text), enumerations of these libraries (looked up by value), and
torch's activation functions. `functools.partial` is kept as a record that cannot be called.
"""

import enum
import importlib
import importlib.util
import re
from pickle import UnpicklingError
from typing import Any, Never

import torch
from torch import nn

from bnnconvert.errors import RefusalError, UsageError, first_line

_PACKAGES = {
    "torch": ("torch.nn.modules.", "torch.nn.parallel.data_parallel."),
    "torchvision": ("torchvision.models.", "torchvision.ops.", "torchvision.transforms."),
    "timm": ("timm.models.", "timm.layers."),
}
_PREFIXES = tuple(prefix for prefixes in _PACKAGES.values() for prefix in prefixes)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_FUNCTIONS = {
    f"{home}.{name}": getattr(nn.functional, name)
    for home, names in {
        "torch.nn.functional": "relu relu6 elu selu celu leaky_relu rrelu hardtanh hardswish hardsigmoid silu mish glu "
        "sigmoid tanh tanhshrink softsign softmax log_softmax softmin prelu threshold",
        "torch._C._nn": "gelu softplus logsigmoid softshrink",
    }.items()
    for name in names.split()
}
PARTIAL = "functools.partial"


class Named:
    """Stands for an allowed class or function while a file is read: it may be stored, not called."""

    def __init__(self, name: str, found: Any) -> None:
        self.name = name
        self.found = found
        if _is_module_class(found):
            self.__dict__["__new__"] = self._empty_instance

    def _empty_instance(self, _cls: object, *args: object) -> object:
        """An instance whose constructor has not run: what the unpickler asks of a class."""
        if args:
            raise UnpicklingError(f"creates {self.name} with arguments")
        return object.__new__(self.found)

    def __call__(self, *_args: object, **_options: object) -> Any:
        raise UnpicklingError(f"calls {self.name}")


class NamedEnum(Named):
    """Stands for an enumeration; calling it looks up a member by value."""

    def __call__(self, *args: object, **options: object) -> Any:
        if len(args) != 1 or options or not isinstance(args[0], str | int):
            raise UnpicklingError(f"calls {self.name}")
        return self.found(args[0])


class StoredPartial:
    """A record of a `functools.partial`: libraries keep some for their constructors, which have long run."""

    def __init__(self, function: object) -> None:
        self.function = function
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *_args: object, **_options: object) -> Never:
        raise RefusalError(
            "The model calls a functools.partial that came from a pickle, which could be any code; load it with "
            "--model package.module:factory and a state dict, or with --trust-pickle."
        )


def is_allowed(name: str) -> bool:
    """Whether a pickle may name this, judged by the name alone: nothing is imported."""
    return name in _FUNCTIONS or name == PARTIAL or (name.startswith(_PREFIXES) and _NAME.fullmatch(name) is not None)


def stand_ins(names: list[str], *, where: str) -> list[Any]:
    """Entries for `torch.serialization.safe_globals` that stand for the allowed `names`.

    Raises: UsageError where a library is missing or does not import, RefusalError where a name is no module class.
    """
    entries: list[Any] = []
    for name in names:
        if name == PARTIAL:
            entries.append((StoredPartial, PARTIAL))
            continue
        found = _FUNCTIONS.get(name) or _find(name, where=where)
        is_enum = isinstance(found, type) and issubclass(found, enum.Enum)
        entries.append(((NamedEnum if is_enum else Named)(name, found), name))
        if _is_module_class(found):
            # Setting state is allowed by the instance's real class, which therefore must be listed too: under a name
            # that no pickle can spell, because names end at a line feed. Members of enumerations are shared by the
            # whole process, so their state stays closed.
            entries.append((found, f"{name}\n"))
    return entries


def _find(name: str, *, where: str) -> type:
    """The class that a file names in one of the allowed packages."""
    module_name, _, class_name = name.rpartition(".")
    found = getattr(_import(module_name, where=where), class_name, None)
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(_PREFIXES) or not _is_plain(found):
        package = name.partition(".")[0]
        raise RefusalError(
            f"{where}: names {name}, which the installed {package} does not offer as an ordinary module class; install "
            f"the version of {package} that saved the file, or load a state dict with --model package.module:factory."
        )
    return found


def _is_plain(found: type) -> bool:
    """Whether instances are made by `object.__new__` alone, or are members of an enumeration."""
    if issubclass(found, enum.Enum):
        return True
    return _is_module_class(found) and found.__new__ is object.__new__ and not _compiles_source(found)


def _is_module_class(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _compiles_source(found: type) -> bool:
    return issubclass(found, torch.fx.GraphModule | torch.jit.ScriptModule)


def _import(module_name: str, *, where: str) -> object:
    """A module of an installed library that the file needs."""
    package = module_name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{where}: holds classes of {package}, which is not installed; pip install {package}.")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            return None
        raise _broken(package, error, where=where) from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # what mismatched binaries raise
        raise _broken(package, error, where=where) from error


def _broken(package: str, error: Exception, *, where: str) -> UsageError:
    return UsageError(
        f"{where}: holds classes of {package}, whose import fails here ({first_line(error)}); install a "
        f"{package} that matches the installed torch."
    )
