"""Duration and cost of a search for nodes, on a network created for it.

    python -m benchmarks.discovery [--runs 5] [--json FILE]

The network (tests/support/netlab.py) is an isolated /24: one host searches, five are nodes, some
refuse connections, and the others are silent, because the address is unused or a firewall drops
packets. Each run is a new process, which imports everything before it calls `discover()`; "cold"
rows include the imports of netifaces and zeroconf. CPU time is that of the process during the
search (`getrusage`, user and system). Exits with 1 if a target is missed. Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.text import aligned

if TYPE_CHECKING:
    from netlab import Host, NetLab

TIMEOUT = 0.5
NODES = tuple(f"10.77.0.{last}" for last in (7, 60, 101, 180, 249))
SEARCHER = "10.77.0.100"
EVERY = tuple(f"10.77.0.{last}" for last in range(1, 255))
OTHERS = tuple(address for address in EVERY if address not in NODES and address != SEARCHER)
REFUSING = OTHERS[::5][:40]


@dataclass(frozen=True)
class Scene:
    """A network and a way to search it. Unused addresses are silent."""

    name: str
    nodes: tuple[str, ...] = ()
    refusing: tuple[str, ...] = ()
    dropping: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    is_cold: bool = False
    most_seconds: float = TIMEOUT + 0.1


_DROPPING = tuple(address for address in OTHERS if address not in REFUSING)
_SCAN_ONLY = (("use_zeroconf", False),)
SCENES = (
    Scene("5 nodes, 40 refuse, others drop", NODES, REFUSING, _DROPPING),
    Scene("5 nodes, 40 refuse, others drop, cold", NODES, REFUSING, _DROPPING, is_cold=True),
    Scene("5 nodes, 40 refuse, others nobody's", NODES, REFUSING),
    Scene("5 nodes, 249 refuse, scan only", NODES, OTHERS, options=_SCAN_ONLY, most_seconds=0.15),
    Scene("253 refuse, scan only", (), NODES + OTHERS, options=_SCAN_ONLY, most_seconds=0.15),
)


@dataclass(frozen=True)
class Reading:
    """One search. Times are in seconds; `first` is None where nothing was found."""

    found: list[str]
    first: float | None
    last: float | None
    whole: float
    cpu: float
    addresses: int
    open_at_most: int
    imports: float


# ---- in the process that searches


async def _search(options: dict[str, Any], imports: float) -> Reading:
    import resource  # not on Windows

    from aiosollol.discovery import discover

    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    arrivals: list[float] = []
    found: list[str] = []
    async with discover(timeout=TIMEOUT, environ={}, **options) as search:
        async for node in search:
            arrivals.append(time.perf_counter() - began)
            found.append(node.url)
    whole = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    return Reading(
        found=found,
        first=arrivals[0] if arrivals else None,
        last=arrivals[-1] if arrivals else None,
        whole=whole,
        cpu=after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        addresses=search.addresses,
        open_at_most=search.open_at_most,
        imports=imports,
    )


def _inside(text: str) -> None:
    order = json.loads(text)
    began = time.perf_counter()
    if not order["is_cold"]:
        import netifaces  # noqa: F401
        import zeroconf.asyncio  # noqa: F401

        import aiosollol.discovery  # noqa: F401
    imports = time.perf_counter() - began
    reading = asyncio.run(_search(order["options"], imports))
    print(json.dumps(vars(reading)), flush=True)


# ---- outside


async def build(lab: NetLab, scene: Scene) -> Host:
    """Add the hosts of a scene to a lab. The one that is to search."""
    for address in scene.nodes:
        await (await lab.host(address)).fake_ollama("--model", "all-minilm")
    if scene.refusing:
        await lab.refusing(*scene.refusing)
    if scene.dropping:
        await lab.silent(*scene.dropping)
    return await lab.host(SEARCHER)


async def read(searcher: Host, scene: Scene) -> Reading:
    """One search of a scene, in a process on the host that searches."""
    order = json.dumps({"options": dict(scene.options), "is_cold": scene.is_cold})
    done = await searcher.run(sys.executable, "-m", "benchmarks.discovery", "--inside", order)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Reading(**json.loads(done.stdout))


async def measure(scenes: Sequence[Scene], runs: int) -> dict[str, list[Reading]]:
    """`runs` readings of each scene. The first search, which fills caches, does not count."""
    from netlab import NetLab

    readings: dict[str, list[Reading]] = {}
    for scene in scenes:
        async with NetLab() as lab:
            searcher = await build(lab, scene)
            await read(searcher, scene)
            readings[scene.name] = [await read(searcher, scene) for _ in range(runs)]
    return readings


def table(readings: dict[str, list[Reading]]) -> str:
    """Medians, and in brackets the worst."""
    head = ("", "found", "first", "last", "whole", "CPU", "asked", "open")
    rows = [head]
    for name, each in readings.items():
        rows.append(
            (
                name,
                "/".join(sorted({str(len(r.found)) for r in each})),
                _spread([r.first for r in each]),
                _spread([r.last for r in each]),
                _spread([r.whole for r in each]),
                _spread([r.cpu for r in each]),
                str(max(r.addresses for r in each)),
                str(max(r.open_at_most for r in each)),
            )
        )
    return "\n".join(aligned(rows))


def missed(scenes: Sequence[Scene], readings: dict[str, list[Reading]]) -> list[str]:
    """The targets that were not met, in words. Times are judged by their medians."""
    found = []
    for scene in scenes:
        each = readings[scene.name]
        urls = sorted(f"http://{address}:11434" for address in scene.nodes)
        if any(sorted(reading.found) != urls for reading in each):
            found.append(f"{scene.name}: not exactly the nodes were found")
        if any(reading.open_at_most > 256 for reading in each):
            found.append(f"{scene.name}: more than 256 sockets at once")
        if scene.is_cold:  # what importing takes is another benchmark's matter
            continue
        firsts = [reading.first for reading in each if reading.first is not None]
        if firsts and statistics.median(firsts) >= 0.06:
            found.append(f"{scene.name}: the first node after 60 ms or more")
        if statistics.median(reading.whole for reading in each) > scene.most_seconds:
            found.append(f"{scene.name}: more than {scene.most_seconds:g} s")
        if statistics.median(reading.cpu for reading in each) >= 0.25:
            found.append(f"{scene.name}: 0.25 s of CPU time or more")
    return found


def _spread(values: Sequence[float | None]) -> str:
    times = [value for value in values if value is not None]
    if not times:
        return "-"
    return f"{statistics.median(times):.3f} ({max(times):.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the search for nodes.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        _inside(given.inside)
        return 0
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))
    readings = asyncio.run(measure(SCENES, given.runs))
    print(table(readings))
    print(f"\nseconds: medians of {given.runs} runs (worst); timeout {TIMEOUT} s")
    imports = [r.imports for name in readings for r in readings[name] if r.imports > 0.001]
    print(f"importing aiosollol.discovery, netifaces and zeroconf before: {_spread(imports)}")
    problems = missed(SCENES, readings)
    for problem in problems:
        print(f"MISSED  {problem}")
    if given.json:
        values = {name: [vars(each) for each in readings[name]] for name in readings}
        pathlib.Path(given.json).write_text(json.dumps(values))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
