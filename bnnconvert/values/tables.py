"""Look up a name in a hand-written table, with the nearest valid names in the error."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from bnnconvert.errors import UsageError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Half a sentence that helps after a wrong name: the nearest valid one, then all of them."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."


def look_up(table: Mapping[str, T], name: str, *, where: str, what: str) -> T:
    """Row of `table` called `name`.

    Raises: UsageError naming `where`, the unknown name and the nearest valid one.
    """
    if name not in table:
        raise UsageError(f"{where}: unknown {what} {name!r}; {nearest(name, table)}")
    return table[name]
