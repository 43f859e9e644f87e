"""The command line: arguments in, calls of the library, and an exit code out.

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
    """Run a command line and return its exit code. `argv` has no program name in it."""
    # Failures are told as errors or in a table; `embed` shows warnings where it draws its bar.
    logging.getLogger("aiosollol").addHandler(_SILENT)
    try:
        return _run(argv)
    except (SollolError, OSError) as error:
        return _explain(error)
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    try:
        from aiosollol.cli.app import app
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
    # Here and not at interpreter exit, where a reader that has gone would be a traceback.
    sys.stdout.flush()
    return code if isinstance(code, int) else 0 if code is None else FAILED


def _explain(error: SollolError | OSError) -> int:
    """Say on stderr what went wrong and what to do next."""
    if isinstance(error, BrokenPipeError):
        # `| head` has read enough. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    print(f"error: {_words(error)}", file=sys.stderr)
    if isinstance(error, NoNodeAvailable):
        print(
            "Start Ollama with `ollama serve`, name your servers with --node URL or OLLAMA_HOST, "
            "see with `aiosollol discover` who answers, or try the built-in model: "
            "`aiosollol demo`, `aiosollol embed --embedded`.",
            file=sys.stderr,
        )
    return BAD_USAGE if isinstance(error, InvalidInput | MissingExtra) else FAILED


def _words(error: SollolError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
