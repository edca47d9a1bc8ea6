"""Find and call `package.module:factory`: the one place where the user's own code runs, because the user named it."""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from bnnconvert.errors import UsageError, brief
from bnnconvert.values.tables import nearest

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_factory(spec: str) -> bool:
    """Whether `spec` reads as `package.module:factory` and is not the name of an existing file."""
    return _SPEC.fullmatch(spec) is not None and not Path(spec).exists()


def call_factory(spec: str) -> object:
    """What `package.module:factory` gives when called without arguments; the object itself if it cannot be called so.

    The current folder comes first on the import path, as with `python -m`.

    Raises: UsageError where the module or the name is missing, or where the user's code fails.
    """
    if _SPEC.fullmatch(spec) is None:
        raise UsageError(f"{spec}: is not of the form package.module:factory, for example mynet.models:resnet20.")
    with current_folder_first():
        return _call(_find(spec), spec)


@contextmanager
def current_folder_first() -> Iterator[None]:
    """The current folder at the head of the import path, for as long as it is needed."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _find(spec: str) -> object:
    """The object that `package.module:name.attribute` names."""
    module_name, _, names = spec.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{spec}: there is no module {error.name} in {os.getcwd()} or among the installed packages; change to "
                "the folder that holds it, or install it."
            ) from error
        raise UsageError(f"{spec}: importing {module_name} failed ({error}); install what is missing.") from error
    except Exception as error:  # the user's module may fail in any way; the cause stays attached
        raise UsageError(f"{spec}: importing {module_name} failed ({brief(error)}); mend the module.") from error
    for name in names.split("."):
        if not hasattr(found, name):
            known = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            raise UsageError(f"{spec}: {module_name} has no {name!r}; {nearest(name, known)}")
        found = getattr(found, name)
    return found


def _call(factory: object, spec: str) -> object:
    """The factory's result; an instance of `nn.Module` or a tuple is a result already."""
    if not callable(factory) or isinstance(factory, nn.Module):
        return factory
    try:
        return factory()
    except Exception as error:  # the user's function may fail in any way; the cause stays attached
        raise UsageError(
            f"{spec}: calling it without arguments failed ({brief(error)}); it must be a function that needs none."
        ) from error
