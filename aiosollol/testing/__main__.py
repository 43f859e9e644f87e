"""``python -m aiosollol.testing``: a FakeOllama as a process.

Prints one line with its URL, and runs until SIGINT, SIGTERM, or the end of a piped stdin. A line on
stdin with the name of a `Fault` sets it, and an empty line clears it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from aiosollol.errors import SollolError
from aiosollol.net.subprocess import announce, stopping
from aiosollol.testing.faults import Fault
from aiosollol.testing.models import FakeModel
from aiosollol.testing.node import DEFAULT_MODELS, SECONDS
from aiosollol.testing.server import FakeOllama


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aiosollol.testing", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    for name in SECONDS:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--slots", type=int, default=1, help="requests computed at once")
    parser.add_argument("--version", default="0.33.0", help="the version to report")
    parser.add_argument(
        "--model",
        action="append",
        type=_model,
        metavar="NAME[,KIND[,DIM[,DIGEST]]]",
        help="a model to serve; KIND is embedding or chat; may be repeated",
    )
    given = vars(parser.parse_args(arguments))
    given["models"] = given.pop("model") or DEFAULT_MODELS
    try:
        asyncio.run(_serve(FakeOllama(**given)))
    except SollolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _model(text: str) -> FakeModel:
    name, kind, dim, digest = (*text.split(","), "", "", "", "")[:4]
    try:
        # FakeModel refuses an unknown kind.
        return FakeModel(name, int(dim or 64), digest, kind or "embedding")  # type: ignore[arg-type]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _serve(node: FakeOllama) -> None:
    def obey(line: bytes) -> None:
        node.fault = Fault[line.decode()] if line else None

    with stopping(with_parent=True, on_line=obey) as stop:
        async with node:
            announce(node.url)
            await stop.wait()


if __name__ == "__main__":
    raise SystemExit(main())
