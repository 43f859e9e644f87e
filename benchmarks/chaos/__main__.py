"""``python -m benchmarks.chaos``: what callers notice when nodes fail, die, or cannot be reached.

    python -m benchmarks.chaos [--seconds 60] [--rate 50] [--only NAME]... [--quick] [--json FILE]

Six FakeOllama processes, a pool in a process of its own, and requests at a fixed rate, or one batch
after another. In the middle of a run one or two of the nodes are struck, and later healed; other
faults come and go, strike all nodes, or last. See benchmarks/README.md.
Exits with 1 if a target is missed. Scenarios in a network of their own need Linux, root and
iproute2; they are left out, with a word, where that is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.chaos.places import Here, Lab, Place
from benchmarks.chaos.report import Row, row_of, table, targets
from benchmarks.chaos.scenes import Scene, Strike, all_scenes
from benchmarks.table import print_targets

RATE = 50.0
"""Requests a second: about 45 % of what six nodes can do, and 90 % of what three can."""
STRUCK, HEALED = 0.25, 0.65
"""When the nodes are struck and healed, in parts of the run."""


async def measure(
    place: Place, scene: Scene, seconds: float, rate: float, **more: float
) -> tuple[Row, list[str]]:
    """One run, and what the pool told of it, line by line. more: of the order for the load."""
    begun = asyncio.Event()
    rate *= scene.load
    order: dict[str, Any] = {
        "seconds": seconds,
        "rate": rate,
        "work": scene.work,
        "seed": 6,
        **more,
    }
    load = asyncio.create_task(place.load(order, begun))
    try:
        waits = asyncio.create_task(begun.wait())
        await asyncio.wait([waits, load], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not load.done():
            blows = (_carry_out(place, strike, began, seconds) for strike in scene.strikes)
            await asyncio.gather(*blows)
        healed_at = loop.time() - began
        figures = await load
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
    log = [f"{at:8.2f}  {node}  {what}" for at, node, what in figures["log"]]
    return row_of(scene, figures, seconds, STRUCK * seconds, healed_at), log


def _begins(strike: Strike, seconds: float) -> float:
    """Seconds from the beginning of a run of `seconds` to the first blow."""
    return STRUCK * seconds if strike.begins is None else strike.begins


async def _carry_out(place: Place, strike: Strike, began: float, seconds: float) -> None:
    """Strike a node and heal it, as often as the strike says, until the run ends."""
    loop = asyncio.get_running_loop()
    begins = _begins(strike, seconds)
    ends = HEALED * seconds if strike.lasts is None else begins + strike.lasts
    while begins < seconds:
        await asyncio.sleep(began + begins - loop.time())
        await place.strike(strike.index, strike.blow)
        if ends == math.inf:
            return
        await asyncio.sleep(began + ends - loop.time())
        await place.heal(strike.index, strike.blow)
        if not strike.every:
            return
        begins, ends = begins + strike.every, ends + strike.every


async def measure_all(
    scenes: Sequence[Scene], seconds: float, rate: float, *, says: bool
) -> list[Row]:
    """Run scenes one after another, each on new nodes: nothing is to be left of the one before."""
    rows: list[Row] = []
    for scene in scenes:
        place: Place = Lab() if scene.is_lab else Here(scene.nodes)
        async with place:
            row, log = await measure(place, scene, seconds, rate)
        rows.append(row)
        if says:
            print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
            for line in log:
                print(line, file=sys.stderr)
            for reason in row.reasons:
                print("   ", reason, file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--only", action="append", default=[], help="part of a scenario's name")
    parser.add_argument("--quick", action="store_true", help="15 s each, fewer scenarios")
    parser.add_argument("--verbose", action="store_true", help="tell what the pool did")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args(arguments)
    scenes = [
        scene
        for scene in all_scenes(quick=given.quick)
        if scene.blow is None or not given.only or any(only in scene.name for only in given.only)
    ]
    # A healthy run is for comparison only: none without others of its kind.
    kinds = {(scene.is_lab, scene.work) for scene in scenes if scene.blow}
    scenes = [scene for scene in scenes if (scene.is_lab, scene.work) in kinds]
    if any(scene.is_lab for scene in scenes):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "support"))
        from netlab import why_no_lab

        if reason := why_no_lab():
            print(f"no lab, so no cuts of the network: {reason}")
            scenes = [scene for scene in scenes if not scene.is_lab]
    seconds = 15.0 if given.quick else given.seconds
    rows = asyncio.run(measure_all(scenes, seconds, given.rate, says=given.verbose))
    print(table(rows))
    found = targets(rows)
    print()
    print_targets(found)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(not all(target.is_met for target in found))


if __name__ == "__main__":
    sys.exit(main())
