"""What any recipe may ask for by name: the rows of all tables, and the keys of training, each with its options."""

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bnnconvert.binarizers import INPUT_BINARIZERS, WEIGHT_BINARIZERS
from bnnconvert.estimators import ESTIMATORS
from bnnconvert.gains import GAINS
from bnnconvert.report.table import Column, Table
from bnnconvert.rewrite import REWRITES
from bnnconvert.train.losses import LOSSES
from bnnconvert.train.optimizers import OPTIMIZERS
from bnnconvert.values.recipe import Ensemble, Section, Stage, Training

ROWS: dict[str, Mapping[str, type]] = {
    "weights": WEIGHT_BINARIZERS,
    "inputs": INPUT_BINARIZERS,
    "estimator": ESTIMATORS,
    "gain": GAINS,
    "rewrites": REWRITES,
    "losses": LOSSES,
    "optimizer": OPTIMIZERS,
}
"""By the key of a recipe under which a row is asked for."""
SECTIONS: dict[str, type[Section]] = {"training": Training, "training.stages": Stage, "training.ensemble": Ensemble}
_OURS = {"shape", "channels", "site", "groups", "lr", "fused"}
"""Arguments of rows that do not come from the recipe."""


@dataclass(frozen=True)
class Choice:
    """One name that a recipe may use under `key`; options without a default must be given."""

    key: str
    name: str
    options: tuple[str, ...]
    text: str
    source: str


def choices() -> list[Choice]:
    """Every row, then every key of training."""
    rows = [_choice(key, name, row) for key, table in ROWS.items() for name, row in table.items()]
    return rows + [choice for key, section in SECTIONS.items() for choice in _keys(key, section)]


def options_table(found: list[Choice]) -> Table:
    """One row per choice."""
    columns = ("key", "name", "what it does", "options", "source")
    cells = tuple((c.key, c.name, c.text, ", ".join(c.options), c.source) for c in found)
    return Table("What any recipe may ask for", tuple(map(Column, columns)), cells)


def _choice(key: str, name: str, row: type) -> Choice:
    own = inspect.signature(row).parameters.values()
    parameters = [p for p in own if p.name not in _OURS and p.kind is inspect.Parameter.KEYWORD_ONLY]
    text = (inspect.getdoc(row) or "").partition("\n")[0]
    return Choice(key, name, tuple(map(_option, parameters)), text, getattr(row, "source", ""))


def _option(parameter: inspect.Parameter) -> str:
    default = parameter.default
    return parameter.name if default in (inspect.Parameter.empty, None) else f"{parameter.name} = {_written(default)}"


def _keys(key: str, section: type[Section]) -> Iterator[Choice]:
    for name, field in section.model_fields.items():
        if field.description is not None:
            default = () if field.is_required() or field.default is None else (f"default {_written(field.default)}",)
            yield Choice(key, name, default, field.description, "")


def _written(value: Any) -> str:
    """A value as TOML has it."""
    return json.dumps(value, default=str)
