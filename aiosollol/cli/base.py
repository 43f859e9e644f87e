"""Shared by all commands: the program `aiosollol`, common options, the runner, and output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Annotated, Any, TextIO, TypeAlias, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

import aiosollol

_EPILOG = (
    "Exit codes: 0 done, 1 something failed, 2 bad usage or bad input, "
    "130 ended by Ctrl-C, 143 by SIGTERM."
)

app = typer.Typer(
    name="aiosollol",
    help="All the Ollama servers on a network, as one.",
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help reads well in a pipe too
    context_settings={"help_option_names": ["-h", "--help"]},
)

Nodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="URL",
        help="An Ollama server, as URL, host:port or host; repeatable. "
        "Default: $OLLAMA_HOST, else the nodes in ~/.config/aiosollol/nodes.json, else those that "
        "a search of the network finds; with SOLLOL_AUTO_DISCOVER=false, this machine.",
    ),
]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="The model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Policy = Annotated[
    str,
    typer.Option(
        metavar="[adaptive|rules]",
        help="How to spread a batch: by predicted times, or by fixed thresholds.",
    ),
]
SameMachine = Annotated[
    str,
    typer.Option(
        metavar="[measure|share|one]",
        help="Nodes on one machine: measure whether they are faster together, always share the "
        "work, or use only one.",
    ),
]


def examples(*lines: str) -> str:
    """The examples at the end of a command's help."""
    # \b: typer keeps the line breaks of this paragraph.
    return "\n".join(
        ("\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {x}" for x in lines))
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"aiosollol {aiosollol.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


T = TypeVar("T")

PATIENCE = 3  # signals until a hanging clean-up is abandoned


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run `command` on an event loop of its own (uvloop if installed) and return its result.

    Ctrl-C, SIGTERM and a closed terminal cancel the command, so that it can clean up. The program
    then exits with 128 + the signal's number, as shells report it.
    """
    received: list[signal.Signals] = []
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_cancellable(command, received))
    except KeyboardInterrupt:  # on Windows, where a loop has no signal handlers
        raise SystemExit(128 + signal.SIGINT) from None
    except asyncio.CancelledError:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None


async def _cancellable(command: Coroutine[Any, Any, T], received: list[signal.Signals]) -> T:
    task = asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()
        # A second signal is ignored: cancelling again would interrupt the clean-up.
        elif len(received) == PATIENCE:
            os._exit(128 + number)

    if sys.platform != "win32":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return await command


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


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
