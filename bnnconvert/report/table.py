"""A table as data: what its columns are called and which strings its rows hold. How it looks is not known here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column; numbers stand to the right."""

    title: str
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True)
class Table:
    """Rows of strings under columns, perhaps with a last row of sums."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] | None = None

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [[c.title for c in self.columns], ["--:" if c.align == "right" else "---" for c in self.columns]]
        lines += [list(row) for row in self.rows]
        if self.total is not None:
            lines.append(list(self.total))
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(title: str) -> Column:
    """A column of numbers."""
    return Column(title, "right")
