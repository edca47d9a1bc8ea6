"""Everything that is printed. The only importer of rich; results go to standard output, all else to standard error."""

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table as RichTable
from rich.text import Text

from bnnconvert.report.page import write_page
from bnnconvert.report.table import Table
from bnnconvert.report.training import epoch_line
from bnnconvert.report.units import as_duration, as_percent
from bnnconvert.values.page import Page
from bnnconvert.values.report import EpochRecord, TrainReport

_UNLIMITED = 1000
"""Width of output that goes into a file or a pipe: nothing is folded there."""


def table(rows: Table) -> None:
    """Print a table."""
    if not _is_main_process():
        return
    title = Text(rows.title, style="bold")
    made = RichTable(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_footer=rows.total is not None
    )
    totals = rows.total or ("",) * len(rows.columns)
    for column, total in zip(rows.columns, totals, strict=True):
        # Text, not strings: a path with brackets in it is no markup.
        is_number = column.align == "right"
        made.add_column(
            Text(column.title), justify=column.align, footer=Text(total), overflow="fold", no_wrap=is_number
        )
    for row in rows.rows:
        made.add_row(*map(Text, row))
    _console().print(made)


def lines(sentences: Iterable[str]) -> None:
    """Print results in words."""
    if _is_main_process():
        for sentence in sentences:
            _console().print(Text(sentence), soft_wrap=True)


def as_json(value: Any) -> None:
    """Print one JSON value; numbers that JSON does not know become null."""
    if _is_main_process():
        sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def note(sentence: str) -> None:
    """Tell something beside the result."""
    if _is_main_process():
        _console(stderr=True).print(Text(sentence), soft_wrap=True)


def page(shown: Page, path: Path) -> None:
    """Write a page and say where it is."""
    if _is_main_process():
        write_page(shown, path)
        note(f"Page: {path}")


def warning(sentence: str) -> None:
    """Tell something that may be wrong."""
    if _is_main_process():
        text = Text.assemble(("Warning: ", "bold yellow"), sentence)
        _console(stderr=True).print(text, soft_wrap=True)


def next_step(command: str) -> None:
    """Say what to type next."""
    if _is_main_process():
        _console(stderr=True).print(Text.assemble("Next: ", (command, "bold")), soft_wrap=True)


def failure(sentence: str) -> None:
    """Tell why a command stops; by every process, as each may have a reason of its own."""
    rank = "" if _is_main_process() else f"[rank {os.environ.get('RANK')}] "
    text = Text.assemble(("Error: ", "bold red"), rank, sentence)
    _console(stderr=True).print(text, soft_wrap=True)


class TrainingBar:
    """Shows a fine-tuning run: a moving bar in a terminal, and a line per epoch."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        columns = ("epoch {task.fields[epoch]}", "loss {task.fields[loss]}", "acc {task.fields[accuracy]}")
        self._bar = Progress(
            TextColumn(columns[0]),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            *map(TextColumn, columns[1:]),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, *, total_steps: int, done_steps: int, epochs: int) -> None:
        """Show an empty bar."""
        self._epochs, self._total = epochs, total_steps
        if done_steps:
            note(f"Going on after {done_steps:,} of {total_steps:,} steps.")
        self._task = self._bar.add_task(
            "", total=total_steps, completed=done_steps, epoch=self._epoch(done_steps), loss="-", accuracy="-", left="-"
        )
        self._bar.start()

    def step(self, *, step: int, loss: float, accuracy: float, seconds_left: float) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            completed=step,
            epoch=self._epoch(step - 1),
            loss=f"{loss:.4f}",
            accuracy=as_percent(accuracy, 1),
            left=as_duration(seconds_left),
        )

    def epoch(self, record: EpochRecord) -> None:
        """Print the epoch's line above the bar."""
        self._console.print(Text(epoch_line(record, self._epochs)), soft_wrap=True)

    def note(self, message: str) -> None:
        """Print a sentence above the bar."""
        self._console.print(Text(message), soft_wrap=True)

    def done(self, report: TrainReport) -> None:
        """Take the bar away; another run may follow."""
        self._bar.remove_task(self._task)
        self._bar.stop()

    def _epoch(self, step: int) -> str:
        current = min(step * self._epochs // max(self._total, 1) + 1, self._epochs)
        return f"{current}/{self._epochs}"


class CountBar:
    """Shows how many samples are done; nothing outside a terminal."""

    def __init__(self, what: str) -> None:
        console = _console(stderr=True)
        parts = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
        self._bar = Progress(*parts, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> "CountBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` samples are done."""
        self._bar.update(self._task, completed=done, total=total, visible=True)


def _console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is; in files and pipes nothing is folded."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def _is_main_process() -> bool:
    """Whether this is the process that talks, under `accelerate launch` and `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
