"""Runs the benchmarks of the client and prints their tables.

    python -m benchmarks.client [--only N ...] [--rounds R] [--json FILE] [--peers] [--full]

Exits with 0 whatever the figures are: a busy machine is no defect.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.client import batch, chat, embed, first, isolation, memory
from benchmarks.client.peers import is_isolated
from benchmarks.client.report import Table, rows_to_json

PACKAGES = ("aiohttp", "orjson", "pybase64", "uvloop", "numpy")
_IS_INSIDE = "AIOSOLLOL_BENCHMARK_ISOLATED"
PEERS = ("ollama", "openai", "httpx", "sollol", "litellm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--only", type=int, nargs="+", choices=range(1, 7), metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--peers", action="store_true", help="also measure other clients")
    parser.add_argument("--full", action="store_true", help="a million texts in benchmark 5")
    options = parser.parse_args()

    if options.peers and not (is_isolated() or _IS_INSIDE in os.environ):
        isolated = isolation.command(sys.argv[1:])
        if isolated is not None:
            os.environ[_IS_INSIDE] = "1"  # whatever it is like in there, once is enough
            os.execvp(isolated[0], isolated)
        print("no network namespace can be had (unshare, ip): some peers will be skipped")
    rounds, peers = options.rounds, options.peers
    benchmarks: dict[int, Callable[[], Table]] = {
        1: lambda: embed.run(rounds, peers=peers),
        2: lambda: batch.run(rounds, peers=peers),
        3: lambda: batch.throughput(rounds, peers=peers),
        4: lambda: chat.run(rounds),
        5: lambda: memory.run(1_000_000 if options.full else 100_000),
        6: lambda: first.run(rounds),
    }
    machine = describe(PEERS if peers else ())
    print(machine, end="\n\n")
    tables = []
    for number in options.only or benchmarks:
        tables.append(benchmarks[number]())
        print(tables[-1], flush=True)
    if options.json is not None:
        result = {"machine": machine, "rounds": rounds, "tables": rows_to_json(tables)}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def describe(peers: tuple[str, ...]) -> str:
    """The machine and the versions, in a line."""
    versions = []
    for package in PACKAGES + peers:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {python}, {', '.join(versions)}"


if __name__ == "__main__":
    sys.exit(main())
