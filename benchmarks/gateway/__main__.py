"""``python -m benchmarks.gateway``: what the gateway costs, against other ways to the nodes.

    python -m benchmarks.gateway [--quick] [--litellm PYTHON] [--sollol PYTHON] [--json FILE]

Each contestant is a process on one core; the load (wrk, and a client for exact times) and the
nodes are on another. They take turns in rounds, and a ratio is the median of those of the rounds.
See benchmarks/README.md. Exits with 1 if a target is missed. It needs Linux, nginx, wrk and uvloop;
HAProxy, LiteLLM and sollol 0.9.66 are left out, with a word, where they are missing. The last two
run only where there is no network, in a namespace: that takes unshare and ip.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.client import isolation
from benchmarks.client.__main__ import describe
from benchmarks.client.peers import is_isolated
from benchmarks.gateway import lists, measure, report
from benchmarks.gateway.measure import QUICK, Effort, Peers
from benchmarks.gateway.processes import LOAD_CORE, SERVER_CORE
from benchmarks.gateway.report import Row
from benchmarks.table import print_targets

_IS_INSIDE = "AIOSOLLOL_BENCHMARK_ISOLATED"
_NEEDED = ("nginx", "wrk")
_WORKS = ("embed", "lone", "chat", "lists")
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('{}') is None)"
_INSTALL = {
    "litellm": "pip install 'litellm[proxy]'",
    "sollol": "pip install sollol==0.9.66",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="about a minute, and rougher")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", action="append", choices=_WORKS, help="may be repeated")
    parser.add_argument("--litellm", metavar="PYTHON", help="an interpreter that has LiteLLM")
    parser.add_argument("--sollol", metavar="PYTHON", help="an interpreter that has sollol 0.9.66")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(arguments)

    if missing := _missing():
        parser.error(f"it takes {', '.join(missing)}")
    os.environ["PATH"] = _path()
    if not (is_isolated() or _IS_INSIDE in os.environ):
        command = _isolated(arguments)
        if command is not None:
            os.environ[_IS_INSIDE] = "1"  # whatever it is like in there, once is enough
            os.execvp(command[0], command)

    skipped: list[str] = []
    peers = Peers(
        _interpreter("litellm", options.litellm, skipped),
        _interpreter("sollol", options.sollol, skipped),
    )
    effort = QUICK if options.quick else Effort()
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    works = options.only or _WORKS
    machine = describe(()) + f", load {os.getloadavg()[0]:.1f} before"
    print(machine)
    print(f"servers on core {SERVER_CORE}, load and nodes on core {LOAD_CORE}", flush=True)

    os.sched_setaffinity(0, {LOAD_CORE})
    began = time.monotonic()
    rows: list[Row] = []
    over = None
    # A short name: in it are sockets, whose paths may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="gw", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        if "embed" in works:
            rows += measure.embeds(home, effort, peers, skipped)
        if "lone" in works:
            rows += measure.lone_texts(home, effort, peers, skipped)
        if "chat" in works:
            rows += measure.chats(home, effort, peers, skipped)
        if "lists" in works:
            over = lists.run(home, rounds=effort.lists)
    if rows:
        print()
        print(report.table(rows))
    if over is not None:
        print()
        print(report.table_of_lists(over))
    print()
    for line in dict.fromkeys(skipped):
        print(line)
    seconds = time.monotonic() - began
    print(f"{effort.rounds} rounds, {seconds:.0f} s; load {os.getloadavg()[0]:.1f} after\n")
    found = report.targets(rows, over)
    print_targets(found)
    if options.json is not None:
        result = {"machine": machine, "rounds": effort.rounds, **report.as_json(rows, over)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(target.is_met for target in found))


def _missing() -> list[str]:
    """What has to be here for any of it, and is not."""
    missing = [name for name in _NEEDED if shutil.which(name, path=_path()) is None]
    if importlib.util.find_spec("uvloop") is None:
        missing.append("uvloop")
    if SERVER_CORE == LOAD_CORE:
        missing.append("two cores (Linux)")
    return missing


def _isolated(arguments: Sequence[str]) -> list[str] | None:
    """This program with `arguments` in a network namespace of its own, if that can be had."""
    command = isolation.command(arguments)
    if command is not None:
        command[command.index("benchmarks.client")] = "benchmarks.gateway"
    return command


def _interpreter(package: str, given: str | None, skipped: list[str]) -> str | None:
    """The interpreter that has a peer; None, with a word, where there is none to be measured."""
    if given is None and importlib.util.find_spec(package) is not None:
        given = sys.executable
    if given is not None and os.sep in given:
        given = os.path.abspath(given)  # each contestant runs in a directory of its own
    if given is None:
        how = f"{_INSTALL[package]} in an environment of its own, and --{package} PYTHON"
        skipped.append(f"{package} left out: {how}")
    elif not is_isolated():
        skipped.append(f"{package} left out: it uses the network on its own (unshare, ip)")
        given = None
    elif subprocess.run([given, "-c", _FIND.format(package)], capture_output=True).returncode:
        skipped.append(f"{package} left out: {given} does not have it")
        given = None
    return given


def _path() -> str:
    """Where programs are: some systems keep those of administrators out of PATH."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


if __name__ == "__main__":
    sys.exit(main())
