"""Output for people: colours and a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import logging
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TextIO, TypeAlias

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100

Advance: TypeAlias = Callable[[int], None]
"""Advances a progress bar by a number of items."""


def write_json(value: Any, stream: TextIO) -> None:
    """Write `value` as one line of JSON, in ASCII so that it survives any terminal and locale."""
    stream.write(json.dumps(value) + "\n")
    stream.flush()


def printable(text: str) -> str:
    """`text` on one line, without control characters.

    Names and error texts come from other machines.
    """
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def seconds_text(seconds: float) -> str:
    """A duration with its significant digits: ``0.0021 s``, ``0.10 s``, ``12.5 s``, ``3,600 s``."""
    digits = 4 if seconds < 0.01 else 3 if seconds < 0.1 else 2 if seconds < 10 else 1
    return f"{seconds:,.{0 if seconds >= 1000 else digits}f} s" if seconds else "0 s"


class Screen:
    """Writes to a terminal or, without colours, to a file or pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        console = Console(file=stream, highlight=False)
        # FORCE_COLOR makes rich assume a terminal, and a progress bar would fill the log.
        is_terminal = stream.isatty() and not console.is_dumb_terminal
        self._console = console if is_terminal else None

    def line(self, text: str = "", *, style: str = "", indent: int = 0) -> None:
        """Print a line, in a style of rich on a terminal; with an indent, as a wrapped block."""
        if self._console is not None:
            self._console.print(Padding(_cell(text, style), (0, 0, 0, indent)))
            return
        plain = printable(text)
        if indent:
            plain = textwrap.indent(textwrap.fill(plain, PLAIN_WIDTH - indent), " " * indent)
        print(plain, file=self._stream, flush=True)

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()
    ) -> None:
        """Print a table. The columns in `right` are right-aligned."""
        if self._console is None:
            self._plain_table(header, rows, right)
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in header:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row))
        self._console.print(table)

    def _plain_table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str]
    ) -> None:
        lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                cell.rjust(width) if name in right else cell.ljust(width)
                for cell, width, name in zip(line, widths, header, strict=True)
            ]
            print("  ".join(cells).rstrip(), file=self._stream, flush=True)

    @contextlib.contextmanager
    def log(self) -> Iterator[None]:
        """While the block runs, print the library's log as lines, above the progress bar."""
        handler = _Lines(self)
        logger = logging.getLogger("aiosollol")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """A moving bar while the block runs; without a terminal, a line after each tenth."""
        if self._console is None:
            yield self._tenths(what, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)

    def _tenths(self, what: str, total: int) -> Advance:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            before, done = done, done + more
            if total and before * 10 // total < done * 10 // total:
                self.line(f"{what}: {done:,} of {total:,}")

        return advance


class _Lines(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.line(record.getMessage(), style="yellow")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


def _cell(text: str, style: str = "") -> Text:
    # Text, because rich reads brackets in a string as markup.
    return Text(printable(text), style=style)
