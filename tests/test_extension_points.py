"""One file, one row: every file of an extension point's folder is in its hand-written table, and says its source."""

import inspect
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bnnconvert
from bnnconvert.binarizers import INPUT_BINARIZERS, WEIGHT_BINARIZERS
from bnnconvert.binarizers.base import InputBinarizer, WeightBinarizer
from bnnconvert.cli.app import COMMANDS
from bnnconvert.estimators import ESTIMATORS
from bnnconvert.estimators.base import Estimator
from bnnconvert.exporters.table import TARGETS
from bnnconvert.gains import GAINS
from bnnconvert.gains.base import Gain
from bnnconvert.load.data import SOURCES
from bnnconvert.lower.folds.table import FOLDS
from bnnconvert.recipe import load_recipe, recipe_names, recipes_folder
from bnnconvert.rewrite import REWRITES
from bnnconvert.rewrite.base import Promise, Rewrite
from bnnconvert.tasks import TASKS
from bnnconvert.train.losses import LOSSES
from bnnconvert.train.losses.base import Loss
from bnnconvert.train.optimizers import OPTIMIZERS
from bnnconvert.train.optimizers.base import RecipeOptimizer

PACKAGE = Path(bnnconvert.__file__).parent
BINARIZERS = {f"weights {n}": r for n, r in WEIGHT_BINARIZERS.items()} | {
    f"inputs {n}": r for n, r in INPUT_BINARIZERS.items()
}
# Folder, its table, and the files in it that are no rows: bases, tables, and what rows share.
POINTS: dict[str, tuple[str, Mapping[str, Any], set[str]]] = {
    "binarizers": ("binarizers", BINARIZERS, {"base", "codes", "half_wave"}),
    "estimators": ("estimators", ESTIMATORS, {"base"}),
    "gains": ("gains", GAINS, {"base"}),
    "rewrites": ("rewrite", REWRITES, {"base", "runner", "regions", "dead_signs", "channel_spaces", "blocks"}),
    "losses": ("train/losses", LOSSES, {"base", "pairing"}),
    "optimizers": ("train/optimizers", OPTIMIZERS, {"base", "groups"}),
    "folds": ("lower/folds", FOLDS, {"base", "table"}),
    "targets": ("exporters", {n: t.write for n, t in TARGETS.items()}, {"table", "verify", "boundary", "draft"}),
    "tasks": ("tasks", TASKS, {"base", "boxes"}),
    "commands": ("cli", COMMANDS, {"app", "failures", "options", "render", "arrays"}),
}
SOURCED: list[tuple[type, Mapping[str, Any]]] = [
    (WeightBinarizer, WEIGHT_BINARIZERS),
    (InputBinarizer, INPUT_BINARIZERS),
    (Estimator, ESTIMATORS),
    (Gain, GAINS),
    (Loss, LOSSES),
    (RecipeOptimizer, OPTIMIZERS),
]


def file_of(row: Any) -> Path:
    return Path(inspect.getfile(row if callable(row) and hasattr(row, "__name__") else type(row)))


@pytest.mark.parametrize("point", POINTS)
def test_every_file_has_a_row_and_every_row_a_file(point: str) -> None:
    folder, table, others = POINTS[point]
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - others - {"__init__"}
    rows = {file_of(row) for row in table.values()}
    assert {path.parent for path in rows} == {PACKAGE / folder}
    assert {path.stem for path in rows} == files


@pytest.mark.parametrize("base", [base for base, _ in SOURCED], ids=lambda base: base.__name__)
def test_every_row_is_of_its_base_and_has_a_source(base: type) -> None:
    table = next(rows for known, rows in SOURCED if known is base)
    for name, row in table.items():
        assert issubclass(row, base), name
        assert isinstance(row.source, str), name
        assert len(row.source) > 10, name


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites_carry_their_row_s_name_and_a_promise(name: str) -> None:
    row = REWRITES[name]
    assert issubclass(row, Rewrite)
    assert row.name == name
    assert isinstance(row.promise, Promise)


def test_commands_carry_their_row_s_name() -> None:
    assert {name: command.__name__ for name, command in COMMANDS.items()} == {name: name for name in COMMANDS}
    assert all((command.__doc__ or "").endswith(".") for command in COMMANDS.values())


def test_data_sources_each_have_their_file() -> None:
    files = {Path(inspect.getfile(source.read)).name for source in SOURCES.values()}
    assert len(files) == len(SOURCES)
    assert all((PACKAGE / "load" / name).exists() for name in files)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_s_file_has_its_name_and_source(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name == tomllib.loads((recipes_folder() / f"{name}.toml").read_text("utf-8"))["name"]
    assert "arXiv" in recipe.source
    assert recipe.summary.endswith(".")
