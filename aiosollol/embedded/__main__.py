"""``python -m aiosollol.embedded``: the embedded node as a process.

Prints one line with its URL, and runs until SIGINT, SIGTERM, or the end of a piped stdin.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from aiosollol.embedded.node import serve
from aiosollol.errors import SollolError
from aiosollol.net.subprocess import announce


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aiosollol.embedded", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    parser.add_argument("--alias", action="append", default=[], help="another name of the model")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds added to each text")
    given = parser.parse_args(arguments)
    try:
        asyncio.run(
            serve(
                given.host,
                given.port,
                aliases=given.alias,
                delay=given.delay,
                on_ready=announce,
                with_parent=True,
            )
        )
    except SollolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
