"""The command line: parses arguments, calls the library, returns an exit code.

Exit codes: 0 done, 1 something failed, 2 bad usage or bad input, 130 ended by Ctrl-C, 143 by
SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from aiosollol.errors import InvalidInput, MissingExtra, NoNodeAvailable, SollolError

__all__ = ["main"]

FAILED = 1
BAD_USAGE = 2

_SILENT = logging.NullHandler()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. `argv` is without the program name."""
    # Failures are shown as errors or in a table; `embed` shows warnings above its progress bar.
    logging.getLogger("aiosollol").addHandler(_SILENT)
    try:
        return _run(argv)
    except (SollolError, OSError) as error:
        return _explain(error)
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    try:
        # Each module adds its commands to `app`; a missing rich fails here, not half-way.
        from aiosollol.cli import batch_commands, gateway, network_commands, node_commands  # noqa: F401
        from aiosollol.cli.base import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        raise MissingExtra("the command line", "cli") from error
    try:
        app(args=argv, prog_name="aiosollol")
    except SystemExit as stop:
        code = stop.code
    else:  # pragma: no cover - typer leaves through SystemExit
        code = 0
    # Not left to interpreter exit, where a closed pipe would print a traceback.
    sys.stdout.flush()
    return code if isinstance(code, int) else 0 if code is None else FAILED


def _explain(error: SollolError | OSError) -> int:
    """Print the error and the next step to stderr; return the exit code."""
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) has closed the pipe: discard what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    print(f"error: {_words(error)}", file=sys.stderr)
    if isinstance(error, NoNodeAvailable):
        print(
            "Start Ollama with `ollama serve`, name your servers with --node URL or OLLAMA_HOST, "
            "list the servers that answer with `aiosollol discover`, or try the built-in model: "
            "`aiosollol demo`, `aiosollol embed --embedded`.",
            file=sys.stderr,
        )
    return BAD_USAGE if isinstance(error, InvalidInput | MissingExtra) else FAILED


def _words(error: SollolError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
