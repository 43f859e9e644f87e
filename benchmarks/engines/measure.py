"""Rounds in which every contestant has its turn, so that a bad minute of the machine hits all.

A turn is a new process: the start, and then for each size a first batch and warm ones. In the
process that has Dask running, the warm batches go to Dask, to this process and to whichever `auto`
takes, by turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from aiosollol.testing import FakeModel, fake_vector
from benchmarks import cluster
from benchmarks.engines import driver, report
from benchmarks.engines.report import Row
from benchmarks.engines.trees import Program
from benchmarks.engines.work import DIM, NODES, Counted, bound, count_bad, expected
from benchmarks.gateway.processes import Failed
from benchmarks.simulator import SimNode

WORKERS = 2
MOST = {driver.LIGHT: 2_500, driver.HEAVY: 10_001}
"""Texts that sollol gets at most: all would take it minutes. From 10,001 on it uses Dask."""
_READY_SECONDS = 60.0
_BATCH_SECONDS = 150.0
_WRITE_SECONDS = 30.0
_SHORT_SECONDS = 0.5
_WARM, _WARM_LONG = 5, 1
"""Warm batches in a turn, of those that take less than `_SHORT_SECONDS` at best, and of others."""


@dataclass(frozen=True, slots=True)
class Effort:
    """runs: at most. seconds: no run begins that would last longer, if it is like the one before;
    one that is too long is made without the largest size."""

    sizes: tuple[int, ...] = (report.SMALL, 1_000, 50_000)
    runs: int = 3
    seconds: float = 345.0
    seconds_per_text: float = 0.0004


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is measured. driver: its name there. python: the interpreter that has it."""

    name: str
    driver: str
    python: str = sys.executable


def all_contestants(sollol: str | None) -> list[Contestant]:
    """Ours, and both modes of sollol if there is an interpreter that has it."""
    found = [
        Contestant(report.LOCAL, driver.LOCAL),
        Contestant(report.DASK, driver.DASK),
        Contestant(report.RAY, driver.RAY),
        Contestant(report.AUTO, driver.AUTO),
    ]
    if sollol is not None:
        found.append(Contestant(report.LIGHT, driver.LIGHT, sollol))
        found.append(Contestant(report.HEAVY, driver.HEAVY, sollol))
    return found


async def measure(
    home: Path,
    effort: Effort,
    contestants: Sequence[Contestant],
    tell: Callable[[str], None],
) -> list[Row]:
    """All rows, in order of size. tell: called with what is being done."""
    # Nothing for a request: who sends texts one by one pays for that himself.
    node = SimNode("node", overhead=0.0, per_item=effort.seconds_per_text)
    table: dict[tuple[int, str], Row] = {}
    async with AsyncExitStack() as stack:
        # A process each: together they do more than one process of Python can.
        nodes = [await stack.enter_async_context(cluster.Cluster([node])) for _ in range(NODES)]
        turns = Turns(home, [each.urls[0] for each in nodes], effort, table)
        began = time.monotonic()
        sizes, starts = effort.sizes, 0.0
        for number in range(effort.runs):
            at = time.monotonic()
            if number:
                sizes = fitting(sizes, turns.seconds, starts, began + effort.seconds - at)
            if not sizes:
                break
            turns.seconds, turns.once = dict.fromkeys(sizes, 0.0), 0.0
            for contestant in contestants if number % 2 == 0 else contestants[::-1]:
                tell(f"{time.monotonic() - began:.0f} s, run {number + 1}: {contestant.name}")
                await turns.take(contestant, sizes, is_first=number == 0)
            starts = time.monotonic() - at - sum(turns.seconds.values()) - turns.once
    return sorted(table.values(), key=lambda row: row.texts)


def fitting(
    sizes: tuple[int, ...], took: Mapping[int, float], starts: float, left: float
) -> tuple[int, ...]:
    """The sizes, without the last ones, that `left` seconds are enough for; perhaps none.

    took: seconds for each in the run before. starts: seconds of all starts and ends in it.
    """
    while sizes and starts + sum(took[size] for size in sizes) > left:
        sizes = sizes[:-1]
    return sizes


def given_of(contestant: Contestant, size: int) -> int:
    """How many of the texts a contestant gets."""
    return min(size, MOST.get(contestant.driver, size))


class Turns:
    """Turns on some nodes. Rows are made in `table` as they are needed.

    seconds: that each size has taken. once: those for what is measured only once.
    """

    def __init__(
        self, home: Path, urls: Sequence[str], effort: Effort, table: dict[tuple[int, str], Row]
    ) -> None:
        self.seconds: dict[int, float] = {}
        self.once = 0.0
        self._home = home
        self._urls = urls
        self._effort = effort
        self._table = table
        self._expected: dict[tuple[int, str], list[bytes]] = {}
        self._digest = FakeModel(cluster.MODEL, cluster.DIM).digest

    async def take(
        self, contestant: Contestant, sizes: Sequence[int], *, is_first: bool = True
    ) -> None:
        """One turn. What fails is noted in a row, and ends it."""
        if not is_first:
            # A part of a batch stands for one that would take long, and so is measured once.
            sizes = [size for size in sizes if given_of(contestant, size) == size]
        if not sizes:
            return
        home = Path(mkdtemp(dir=self._home))
        setting = json.dumps({"urls": list(self._urls), "workers": WORKERS})
        command = [contestant.python, "-m", "benchmarks.engines.driver", contestant.driver, setting]
        program = Program(command, home, environment(home, os.environ))
        row = self._row(contestant.name, contestant, sizes[0])
        try:
            async with program:
                ready = (await program.answer(_READY_SECONDS))["ready"] - program.began
                cpu = program.cpu_seconds()
                for size in sizes:
                    row = self._row(contestant.name, contestant, size)
                    row.ready.append(ready)
                    row.ready_cpu.append(cpu)
                    began = time.monotonic()
                    try:
                        await self._measure(program, contestant, row)
                    finally:
                        took = time.monotonic() - began
                        if row.given < row.texts:
                            self.once += took
                        else:
                            self.seconds[size] = self.seconds.get(size, 0.0) + took
        except (Failed, OSError) as error:  # it has ended, or is gone while we look at it
            row.failures.append(str(error))
        row.left += program.left

    async def _measure(self, program: Program, contestant: Contestant, row: Row) -> None:
        seed = f"first of {row.texts}"
        before = program.cpu_seconds()
        seconds = await self._batch(program, row, contestant.driver, seed)
        row.first.append(row.ready[-1] + seconds)
        row.first_cpu.append(program.cpu_seconds() - before)
        row.peak.append(program.peak)
        row.own.append(program.own_peak())
        if (pss := program.shared_bytes()) is not None:
            row.pss.append(pss)
        await self._check(program, row, seed)
        if row.given < row.texts:
            row.warm.append(seconds)
            row.warm_cpu.append(row.first_cpu[-1])
        else:
            await self._warm(program, contestant, row)

    async def _warm(self, program: Program, contestant: Contestant, row: Row) -> None:
        count = _WARM if row.bound < _SHORT_SECONDS else _WARM_LONG
        if contestant.driver in MOST and row.texts > report.SMALL:
            count = _WARM_LONG
        ways = [(contestant.driver, row)]
        if contestant.driver == driver.DASK:
            names = ((driver.LOCAL, report.LOCAL_WARM), (driver.AUTO, report.AUTO_WARM))
            ways += [(way, self._row(name, contestant, row.texts)) for way, name in names]
        for number in range(count):
            for way, its_row in ways if number % 2 == 0 else ways[::-1]:
                seed = f"warm{number}"
                before = program.cpu_seconds()
                its_row.warm.append(await self._batch(program, its_row, way, seed))
                its_row.warm_cpu.append(program.cpu_seconds() - before)
                await self._check(program, its_row, seed)

    async def _batch(self, program: Program, row: Row, way: str, seed: str) -> float:
        """Seconds of one batch."""
        done = await program.answer(
            _BATCH_SECONDS, do="batch", texts=row.given, seed=seed, engine=way
        )
        if note := done["note"]:
            row.workers = max(row.workers, note["workers"])
            if way == driver.AUTO:
                row.choices.append(f"{note['engine']}: {note['reason']}")
        seconds: float = done["ended"] - done["began"]
        return seconds

    async def _check(self, program: Program, row: Row, seed: str) -> None:
        path = self._home / "vectors"
        await program.answer(_WRITE_SECONDS, do="write", path=str(path))
        bad = await asyncio.to_thread(self._count_bad, path.read_bytes(), row.given, seed)
        row.wrong += bad.wrong
        row.missing += bad.missing

    def _count_bad(self, found: bytes, count: int, seed: str) -> Counted:
        if (count, seed) not in self._expected:
            vectors = expected(count, seed, lambda text: fake_vector(self._digest, text, DIM))
            self._expected[count, seed] = vectors
        return count_bad(found, self._expected[count, seed])

    def _row(self, name: str, contestant: Contestant, size: int) -> Row:
        given = given_of(contestant, size)
        at_best = bound(given, self._effort.seconds_per_text)
        return self._table.setdefault((size, name), Row(name, size, given, at_best))


def environment(home: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of a contestant: none that would tell it of other nodes, clusters or files."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("SOLLOL_", "RAY_", "DASK_", "OLLAMA_", "XDG_"))
    }
    return kept | {
        "SOLLOL_AUTO_DISCOVER": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(home),
        "DASK_TEMPORARY_DIRECTORY": str(home),
        "HOME": str(home),
    }
