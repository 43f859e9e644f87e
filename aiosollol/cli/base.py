"""What all commands share: the program `aiosollol`, common options, and the runner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

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
