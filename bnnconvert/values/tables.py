"""Look up a name in a hand-written table, with the nearest valid names in the error."""

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bnnconvert.errors import UsageError
from bnnconvert.values.recipe import Named

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


def build_row(table: Mapping[str, Callable[..., T]], named: Named, *, where: str, what: str, **fixed: Any) -> T:
    """Object that the row called `named.name` makes from `fixed` and from the options beside the name.

    Options are checked against the constructor's signature: the names, and the values against the annotations.
    `fixed` arguments come from us and win: an option of the same name is unknown. Those that a row does not take
    are left out, so that a row asks for what it needs and no more.

    Raises: UsageError naming `where`, the row and the key.
    """
    row = look_up(table, named.name, where=where, what=what)
    options = row_options(row, named, where=where, what=what, fixed=fixed)
    parameters = inspect.signature(row).parameters
    return row(**options, **{name: value for name, value in fixed.items() if name in parameters})


def row_options(
    row: Callable[..., Any], named: Named, *, where: str, what: str, fixed: Collection[str]
) -> dict[str, Any]:
    """Checked options for a row, without making its object; arguments in `fixed` come from us.

    Raises: UsageError as `build_row`.
    """
    parameters = inspect.signature(row).parameters
    maker: Any = getattr(row, "__init__") if isinstance(row, type) else row  # noqa: B009 (mypy forbids the plain form)
    annotations = get_type_hints(maker, include_extras=True)
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = [name for name, p in parameters.items() if p.kind not in stars and name not in fixed]
    here = f"{where}: {what} {named.name!r}"
    options = {}
    for name, value in named.options.items():
        if name not in known:
            common = type(named).model_fields.keys() - {"name"}
            raise UsageError(f"{here} has no option {name!r}; {nearest(name, {*known, *common})}")
        options[name] = _checked(value, annotations.get(name, Any), where=f"{here}, option {name!r}")
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in options]
    if missing:
        raise UsageError(f"{here} needs the option {missing[0]!r}; add it beside the name.")
    return options


def _checked(value: Any, annotation: Any, *, where: str) -> Any:
    """`value` as the annotation wants it; strict, apart from lists that stand for tuples as TOML has no other way."""
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise UsageError(f"{where} is {value!r}: {reason[0].lower()}{reason[1:]}.") from None
