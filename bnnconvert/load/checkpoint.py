"""Read what `torch.save` wrote: tensors and plain modules, without running code of the file's choosing."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from bnnconvert.errors import RefusalError, UsageError, brief, first_line
from bnnconvert.load.allowed import is_allowed, stand_ins
from bnnconvert.load.restore import restore
from bnnconvert.load.user_code import current_folder_first

_OUT = (
    "save model.state_dict() instead and load it with --model package.module:factory, or pass --trust-pickle if you "
    "trust the file, since that runs whatever code is in it"
)
# What reading damaged bytes raises besides UnpicklingError; none of them can come from code of the file.
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OSError,
)


def read_checkpoint(path: Path, *, old: bool) -> Any:
    """Content of a checkpoint, allowing the tensors and the module classes of `allowed.py`.

    `old` is the format of before torch 1.6, which is read for tensors only.

    Raises: RefusalError naming what the file may not name, UsageError where it is damaged.
    """
    names = [] if old else _named(path)
    refused = [name for name in names if not is_allowed(name)]
    if refused:
        raise _refusal(path, refused)
    entries = stand_ins(names, where=str(path))
    try:
        with warnings.catch_warnings(), safe_globals(entries):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unreadable(path, error) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return restore(content, where=str(path))


def read_trusted(path: Path) -> Any:
    """Content of a checkpoint, running whatever code it holds: the user said so.

    Raises: UsageError where that fails.
    """
    try:
        with current_folder_first():
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # code of the file may fail in any way; the cause stays attached
        hint = "make its module importable from the current folder"
        if "__main__" in str(error):
            hint = "its class was defined in a script, so load a state dict with --model package.module:factory"
        raise UsageError(f"{path}: reading the pickle failed ({brief(error)}); {hint}.") from error


def _named(path: Path) -> list[str]:
    """What the pickle names beyond torch's own safe list; it is taken apart, not run."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except pickle.UnpicklingError as error:
        raise _unreadable(path, error) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _refusal(path: Path, names: list[str]) -> RefusalError:
    """The two ways out of a pickle that names something foreign."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return RefusalError(
        f"{path}: names {names[0]}{more}, which is no module class of torch.nn, torchvision or timm; {_OUT}."
    )


def _unreadable(path: Path, error: pickle.UnpicklingError) -> RefusalError:
    """The refusal for what torch's restricted unpickler would not do."""
    # torch wraps the reason in advice of its own, whose way out is not ours
    text = first_line(error.__context__ or error)
    named = re.search(r"GLOBAL (\S+) (?:was not|whose)", text)
    if named and is_allowed(named.group(1)):
        return RefusalError(f"{path}: holds a module in the format of before torch 1.6, not only tensors; {_OUT}.")
    if named:
        return _refusal(path, [named.group(1)])
    return RefusalError(f"{path}: is not a plain saved module or state dict ({text.strip().rstrip('.')}); {_OUT}.")


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path}: is damaged or not complete ({brief(error)}); copy or save it again.")
