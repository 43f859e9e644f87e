"""``python -m benchmarks.engines``: start-up, memory and throughput of in-process, Dask and Ray.

    python -m benchmarks.engines [--quick] [--runs R] [--sollol PYTHON] [--json FILE]

Each contestant is a process of its own, in front of four nodes of equal and known speed. They take
turns; figures are medians. See benchmarks/README.md. Exits with 1 if a target is missed. It needs
Linux, and the extras dask and ray; sollol 0.9.66 is left out, with a word, where it is missing. All
of it runs where there is no network but loopback, in a namespace: that takes unshare and ip.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.client import isolation
from benchmarks.client.__main__ import describe
from benchmarks.client.peers import is_isolated
from benchmarks.engines import report
from benchmarks.engines.measure import Contestant, Effort, all_contestants, measure
from benchmarks.engines.report import Row
from benchmarks.engines.trees import adopting
from benchmarks.engines.work import CHARACTERS, DIM, NODES
from benchmarks.table import print_targets

_QUICK = Effort(sizes=(report.SMALL, 1_000), runs=1)
_IS_INSIDE = "AIOSOLLOL_BENCHMARK_ISOLATED"
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sollol') is None)"
_PACKAGES = {report.DASK: "distributed", report.RAY: "ray", report.AUTO: "distributed"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="47 and 1,000 texts, once")
    parser.add_argument("--runs", type=int, help="at most, while there is time; 3")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="TEXTS")
    parser.add_argument("--only", action="append", metavar="NAME", help="contestants; repeatable")
    parser.add_argument("--milliseconds", type=float, help="a text, on a node; 0.4")
    parser.add_argument("--seconds", type=float, help="no run begins that would take longer; 345")
    parser.add_argument("--sollol", metavar="PYTHON", help="an interpreter that has sollol 0.9.66")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("it takes Linux")
    if not is_isolated():
        command = None if _IS_INSIDE in os.environ else isolation.command(arguments)
        if command is None:
            parser.error("it takes a network namespace of its own (unshare, ip)")
        command[command.index("benchmarks.client")] = "benchmarks.engines"
        os.environ[_IS_INSIDE] = "1"
        os.execvp(command[0], command)

    effort = _QUICK if options.quick else Effort()
    effort = replace(
        effort,
        sizes=tuple(sorted(set(options.sizes or effort.sizes))),
        runs=options.runs or effort.runs,
        seconds=options.seconds or effort.seconds,
        seconds_per_text=(options.milliseconds or 1e3 * effort.seconds_per_text) / 1e3,
    )
    skipped: list[str] = []
    contestants = _contestants(options.sollol, options.only or [], skipped)
    machine = describe(("distributed", "ray")) + f", load {os.getloadavg()[0]:.1f} before"
    print(machine)
    print(
        f"{NODES} nodes, {1e3 * effort.seconds_per_text:g} ms a text and nothing a request, "
        f"{DIM} dimensions; texts of {CHARACTERS} characters",
        flush=True,
    )
    began = time.monotonic()
    # A short name: in it are sockets, whose paths may have no more than 107 bytes.
    with (
        adopting(),
        tempfile.TemporaryDirectory(prefix="en", ignore_cleanup_errors=True) as directory,
    ):
        try:
            rows = asyncio.run(_measure(Path(directory), effort, contestants))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130
    print()
    print(report.table(rows), end="\n\n")
    for line in (*report.notes(rows), *skipped):
        print(line)
    seconds = time.monotonic() - began
    print(f"{_runs(rows)}; {seconds:.0f} s; load {os.getloadavg()[0]:.1f} after\n")
    found = report.targets(rows)
    print_targets(found)
    if options.json is not None:
        result = {"machine": machine, "effort": asdict(effort), "rows": report.as_json(rows)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(target.is_met for target in found))


async def _measure(home: Path, effort: Effort, contestants: Sequence[Contestant]) -> list[Row]:
    """The rows. What asks this process to end, ends what it has started."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await measure(home, effort, contestants, _say)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _contestants(given: str | None, names: Sequence[str], skipped: list[str]) -> list[Contestant]:
    """Those that are asked for and can be had, all if none is named."""
    found = []
    for each in all_contestants(_sollol(given, skipped)):
        package = _PACKAGES.get(each.name)
        if package is not None and importlib.util.find_spec(package) is None:
            skipped.append(f"{each.name} left out: pip install {package}")
        elif not names or any(name.lower() in each.name.lower() for name in names):
            found.append(each)
    return found


def _sollol(given: str | None, skipped: list[str]) -> str | None:
    """The interpreter that has sollol; None, with a word, if there is none."""
    if given is None and importlib.util.find_spec("sollol") is not None:
        given = sys.executable
    if given is None:
        how = "pip install sollol==0.9.66 in an environment of its own, and --sollol PYTHON"
        skipped.append(f"sollol left out: {how}")
        return None
    if os.sep in given:
        given = os.path.abspath(given)  # each contestant runs in a directory of its own
    try:
        has_it = not subprocess.run([given, "-c", _FIND], capture_output=True).returncode
    except OSError:
        has_it = False
    if not has_it:
        skipped.append(f"sollol left out: {given} does not have it")
    return given if has_it else None


def _runs(rows: Sequence[Row]) -> str:
    sizes = sorted({row.texts for row in rows})
    most = {size: max(len(row.first) for row in rows if row.texts == size) for size in sizes}
    return "runs: " + ", ".join(f"{most[size]} of {size:,}" for size in sizes)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
