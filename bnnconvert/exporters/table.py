"""The export targets. To add one: one file, one row."""

from collections.abc import Callable

from bnnconvert.exporters.packed import export_packed
from bnnconvert.values.report import ExportReport

TARGETS: dict[str, Callable[..., ExportReport]] = {
    "packed": export_packed,
}
