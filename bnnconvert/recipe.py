"""Read recipes: TOML in, a checked `Recipe` out. A recipe is data; it never runs code."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bnnconvert.errors import UsageError
from bnnconvert.values.recipe import Recipe
from bnnconvert.values.tables import nearest


@cache
def recipes_folder() -> Path:
    """Folder of the shipped recipes: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    shipped = package / "recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Shipped recipe by name, or any recipe by the path of its TOML file.

    Raises: UsageError naming the file and the key that is wrong, with the nearest valid name.
    """
    where = name if name.endswith(".toml") else f"recipe {name!r}"
    return parse_recipe(recipe_text(name), where=where)


def recipe_text(name: str) -> str:
    """TOML text of a shipped recipe or of a recipe file.

    Raises: UsageError if there is no such recipe or it cannot be read.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if name not in recipe_names():
            raise UsageError(f"Unknown recipe {name!r}; {nearest(name, recipe_names())} A TOML file's path works too.")
        path = recipes_folder() / f"{name}.toml"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); give a recipe's name or the path of a TOML file."
        ) from error


def parse_recipe(text: str, *, where: str) -> Recipe:
    """Recipe from TOML text.

    Raises: UsageError naming `where` and the key.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not valid TOML: {error}; correct it there.") from error
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = _key(first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"{where}: unknown key {key!r}; {nearest(str(first['loc'][-1]), _siblings(first['loc']))}"
            ) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {key or 'the file'}: {reason[0].lower()}{reason[1:]}; correct that key.") from error


def _key(location: tuple[int | str, ...]) -> str:
    """`layers[2].match.kind` for ("layers", 2, "match", "kind")."""
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the section in which the last part of `location` stands."""
    section: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, str) and isinstance(section, type) and issubclass(section, BaseModel):
            section = _section_in(section.model_fields[part].annotation)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _section_in(annotation: Any) -> Any:
    """First section class inside an annotation such as `list[Rule]` or `Match | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for a in getattr(annotation, "__args__", ()) if (found := _section_in(a)) is not None), None)
