"""Numpy files in and out, for `bnnconvert run`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnnconvert.errors import UsageError
from bnnconvert.values.files import atomic_write

ONLY = "output"
"""Name of the output where there is just one."""


def check_names(sources: Sequence[Path], target: Path) -> None:
    """Check the endings of the files, before anything is computed.

    Raises: UsageError.
    """
    for source in sources:
        if source.suffix != ".npy":
            raise UsageError(f"--input {source}: must be a .npy file; save the array with numpy.save.")
    if target.suffix not in (".npy", ".npz"):
        raise UsageError(f"--output {target}: must end in .npy, or in .npz for several outputs.")


def read(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file; pickled objects are refused.

    Raises: UsageError.
    """
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UsageError(f"--input {path}: there is no such file; give a .npy file.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"--input {path}: is no readable .npy file ({error}); save the array with numpy.save."
        ) from None


def write(path: Path, named: dict[str, npt.NDArray[Any]]) -> None:
    """Write one array as .npy, or several under their names as .npz.

    Raises: UsageError where several do not fit into a .npy file, or as `atomic_write`.
    """
    if path.suffix == ".npy" and len(named) != 1:
        raise UsageError(f"--output {path}: the model has {len(named)} outputs ({', '.join(named)}); give a .npz file.")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, next(iter(named.values())))
        else:
            np.savez(file, **named)  # type: ignore[arg-type]


def named_leaves(output: Any) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a structured output by their place in it: `logits`, `features.0`; `output` for a lone one."""
    leaves = dict(_leaves(output, ()))
    return {ONLY: leaves[""]} if list(leaves) == [""] else leaves


def _leaves(output: Any, place: tuple[str, ...]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    if isinstance(output, dict):
        for key, item in output.items():
            yield from _leaves(item, (*place, str(key)))
    elif isinstance(output, list | tuple):
        for number, item in enumerate(output):
            yield from _leaves(item, (*place, str(number)))
    elif output is not None:
        yield ".".join(place), output
