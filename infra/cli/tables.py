"""Tables on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.cli.terminal import plain

PIPE_WIDTH = 200
"""Columns where no terminal sets a width: a line for each row."""


def console() -> Console:
    """Standard output, whose lines are only broken where a terminal ends."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table without lines; text in it that is not styled may come from anywhere."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, overflow="fold", min_width=len(column))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return made
