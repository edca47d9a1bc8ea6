"""The export targets. To add one: one file, one row."""

from collections.abc import Callable
from dataclasses import dataclass

from bnnconvert.exporters.packed import export_packed
from bnnconvert.exporters.plan import export_plan
from bnnconvert.values.report import ExportReport


@dataclass(frozen=True)
class Target:
    """A format: what writes it, and how its files are called by default."""

    write: Callable[..., ExportReport]
    suffix: str


TARGETS: dict[str, Target] = {
    "packed": Target(export_packed, ".packed.safetensors"),
    "plan": Target(export_plan, ".plan"),
}
