"""The parts of `benchmarks.engines`: what it asks, counts and reads, and that programs end."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import unmet
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cluster
from benchmarks.engines import driver, measure, report, trees, work
from benchmarks.engines.report import Row
from benchmarks.gateway.processes import Failed, Process

pytestmark = pytest.mark.anyio


# ---- what is asked, and whether the answer is right


def test_texts_are_all_different() -> None:
    some = work.texts(100, "first") + work.texts(100, "warm0")
    assert len(set(some)) == 200
    assert {len(text) for text in some} == {work.CHARACTERS}
    assert work.texts(50, "first") == some[:50]


def test_the_nodes_serve_what_is_asked_for() -> None:
    assert (cluster.MODEL, cluster.DIM) == (work.MODEL, work.DIM)


def test_the_bound_is_all_work_over_all_rates() -> None:
    assert work.bound(1000, 0.004) == pytest.approx(1.0)


def vector(number: float) -> list[float]:
    return [float(number)] * work.DIM


def row_of(number: float) -> bytes:
    return work.packed([vector(number)])


@given(st.permutations(range(6)))
def test_vectors_out_of_order_are_counted(order: list[int]) -> None:
    found = work.packed([vector(number) for number in order])
    bad = work.count_bad(found, [row_of(number) for number in range(6)])
    assert bad == (sum(place != number for place, number in enumerate(order)), 0)


@given(st.lists(st.sampled_from(["right", "wrong", "none", "short"]), max_size=8))
def test_each_vector_is_right_wrong_or_missing(kinds: list[str]) -> None:
    made = {"right": vector(1), "wrong": vector(2), "none": None, "short": vector(1)[1:]}
    bad = work.count_bad(work.packed([made[kind] for kind in kinds]), [row_of(1)] * len(kinds))
    assert bad == (kinds.count("wrong"), kinds.count("none") + kinds.count("short"))


@pytest.mark.parametrize(("more", "bad"), [(-2, (0, 2)), (0, (0, 0)), (2, (2, 0))])
def test_too_few_or_too_many_vectors_are_bad(more: int, bad: tuple[int, int]) -> None:
    assert work.count_bad(row_of(1) * (4 + more), [row_of(1)] * 4) == bad


# ---- what Linux tells


def stat(pid: int, parent: int, *, state: str = "S", name: str = "python", pages: int = 10) -> str:
    numbers = [1, 1, 0, -1, 0, 0, 0, 0, 0, 150, 50, 20, 10, 20, 0, 4, 0, 777, 9999, pages, 5, 6]
    return f"{pid} ({name}) {state} {parent} " + " ".join(map(str, numbers))


def test_usage_is_read_from_proc() -> None:
    usage = trees.read_usage(stat(7, 5, name="a) b (c", pages=3))
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert usage.process == Process(7, 5, 777)
    assert usage.own == pytest.approx(200 * tick)
    assert usage.children == pytest.approx(30 * tick)
    assert usage.resident == 3 * os.sysconf("SC_PAGE_SIZE")
    assert not usage.is_dead
    assert trees.read_usage(stat(7, 5, state="Z")).is_dead


def test_a_tree_is_a_process_and_what_descends_from_it() -> None:
    texts = [stat(5, 1), stat(6, 5), stat(7, 6, state="Z", pages=0), stat(8, 1), stat(9, 8)]
    usages = [trees.read_usage(text) for text in texts]
    tree = trees.tree_of(usages, 5)
    assert {each.pid for each in tree.processes} == {5, 6}
    assert tree.resident == 2 * usages[0].resident
    assert tree.cpu == pytest.approx(3 * (usages[0].own + usages[0].children))
    assert trees.tree_of(usages, 4) == (frozenset(), 0, 0)


def test_memory_is_read_in_bytes() -> None:
    text = "Rss:  2000 kB\nPss:   12 kB\nPss_Anon:  1 kB\n"
    assert trees.read_field(text, "Pss") == 12 * 1024


# ---- programs

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
WORDS = "import sys; sys.exit('no such thing')"
# It leaves a child behind, as a daemon does: one of another session, whose parent is gone.
DAEMON = """\
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.execvp("sleep", ["sleep", "600"])
    os._exit(0)
os.wait()
print('{"ready": true}', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def _linux() -> Iterator[None]:
    if sys.platform != "linux":
        unmet("not here: Linux")
    with trees.adopting():
        yield


def program(home: pathlib.Path, text: str) -> trees.Program:
    return trees.Program([sys.executable, "-c", text], home, dict(os.environ))


def is_there(process: Process) -> bool:
    return pathlib.Path("/proc", str(process.pid)).exists()


@pytest.mark.usefixtures("_linux")
async def test_a_program_answers_and_is_measured(tmp_path: pathlib.Path) -> None:
    async with program(tmp_path, ECHO) as running:
        assert await running.answer(30, do="this") == {"do": "this"}
        (process,) = running.look().processes
        assert running.peak >= running.own_peak() // 2 > 0
        assert running.cpu_seconds() > 0
        assert (running.shared_bytes() or 1) > 0
    assert not is_there(process)
    assert running.left == 0


@pytest.mark.usefixtures("_linux")
async def test_a_program_that_ends_says_why(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Failed, match=r"has ended.*no such thing"):
        async with program(tmp_path, WORDS) as running:
            await running.answer(30)


@pytest.mark.usefixtures("_linux")
async def test_a_program_that_is_late_is_ended(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Failed, match="longer than 0 s"):
        async with program(tmp_path, ECHO) as running:
            await running.answer(0)
    assert running.left == 0


@pytest.mark.usefixtures("_linux")
async def test_what_a_program_leaves_behind_is_ended(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "GONE_SECONDS", 0.0)
    async with program(tmp_path, DAEMON) as running:
        await running.answer(30)
        processes = running.look().processes
        assert len(processes) == 2
    assert running.left == 1
    assert not any(map(is_there, processes))


@pytest.mark.usefixtures("_linux")
async def test_a_program_ends_with_who_is_cancelled(tmp_path: pathlib.Path) -> None:
    entered = asyncio.Event()
    processes: list[Process] = []

    async def run() -> None:
        async with program(tmp_path, ECHO) as running:
            await running.answer(30, do="this")
            processes.extend(running.look().processes)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes
    assert not any(map(is_there, processes))


# ---- the process of a contestant


class Counting:
    """A driver that computes nothing."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def start(self) -> None:
        self.done.append("start")

    async def compute(self, batch: list[str], engine: str) -> dict[str, Any]:
        self.done.append(f"{len(batch)} by {engine}")
        return {"engine": engine}

    def vectors(self) -> bytes:
        return b"vectors"

    async def close(self) -> None:
        self.done.append("close")


async def test_a_driver_does_as_it_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vectors"
    orders = [
        {"do": "batch", "texts": 3, "seed": "first", "engine": "dask"},
        {"do": "write", "path": str(path)},
    ]
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("".join(json.dumps(each) + "\n" for each in orders))
    )
    said, counting, began = io.StringIO(), Counting(), time.monotonic()
    await driver.obey(counting, said)
    ready, batch, written = map(json.loads, said.getvalue().splitlines())
    assert counting.done == ["start", "3 by dask", "close"]
    assert began <= ready["ready"] <= batch["began"] <= batch["ended"] <= time.monotonic()
    assert batch["note"] == {"engine": "dask"}
    assert written == {}
    assert path.read_bytes() == b"vectors"


async def test_sollol_runs_only_where_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    theirs = driver.Theirs(driver.LIGHT, ["http://127.0.0.1:1"], workers=2)
    with pytest.raises(RuntimeError, match="searches the network"):
        await theirs.start()


def test_a_contestant_knows_nothing_of_other_clusters(tmp_path: pathlib.Path) -> None:
    others = {"RAY_ADDRESS": "auto", "SOLLOL_NODES": "elsewhere:1", "DASK_CONFIG": "/etc/x"}
    others |= {"XDG_CONFIG_HOME": "/home/me", "OLLAMA_HOST": "elsewhere", "PATH": "/bin"}
    found = measure.environment(tmp_path, others)
    assert found == {
        "PATH": "/bin",
        "HOME": str(tmp_path),
        "RAY_TMPDIR": str(tmp_path),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "SOLLOL_AUTO_DISCOVER": "false",
    }


def test_sollol_gets_a_part_of_what_would_take_it_minutes() -> None:
    given_of = measure.given_of
    local, *_, light, heavy = measure.all_contestants("python")
    assert [given_of(each, 47) for each in (local, light, heavy)] == [47, 47, 47]
    assert given_of(local, 50_000) == 50_000
    assert given_of(light, 50_000) < 50_000
    assert 10_000 < given_of(heavy, 50_000) < 50_000  # else its Dask has nothing to do
    assert [each.name for each in measure.all_contestants(None)] == list(report.OURS[:4])


@pytest.mark.parametrize(
    ("left", "sizes"), [(71.0, (47, 1000, 50_000)), (69.0, (47, 1000)), (11.5, (47,)), (10.5, ())]
)
def test_a_run_has_the_sizes_that_there_is_time_for(left: float, sizes: tuple[int, ...]) -> None:
    took = {47: 1.0, 1000: 9.0, 50_000: 50.0}
    assert measure.fitting((47, 1000, 50_000), took, 10.0, left) == sizes


@pytest.mark.usefixtures("_linux")
async def test_a_contestant_is_measured(tmp_path: pathlib.Path) -> None:
    effort = measure.Effort(sizes=(8, 20), runs=1, seconds_per_text=0.0)
    contestants = measure.all_contestants(None)[:1]
    rows = await measure.measure(tmp_path, effort, contestants, lambda said: None)
    assert [(row.name, row.texts) for row in rows] == [(report.LOCAL, 8), (report.LOCAL, 20)]
    for row in rows:
        assert (row.wrong, row.missing, row.left, row.failures) == (0, 0, 0, [])
        assert 0 < row.ready[0] < row.first[0]
        assert len(row.warm) == len(row.warm_cpu) == 5
        assert row.peak[0] >= row.own[0] // 2 > 0


# ---- what is told of it


def fast(name: str, texts: int, seconds: float, **changes: Any) -> Row:
    row = Row(name, texts, texts, work.bound(texts, 0.0004))
    row.ready = [1.0, 1.1, 5.0]
    row.first = [1.5 + seconds] * 3
    row.warm = [seconds * part for part in (0.98, 1.0, 1.02)]
    row.ready_cpu, row.first_cpu, row.warm_cpu = [0.5] * 3, [0.1] * 3, [0.01] * 3
    row.peak, row.pss, row.own = [30_000_000] * 3, [20_000_000] * 3, [25_000_000] * 3
    return replace(row, **changes)


ROWS = [
    fast(report.LOCAL, 47, 0.02),
    fast(report.DASK, 47, 0.2),
    fast(report.LOCAL_WARM, 47, 0.021),
    fast(report.AUTO_WARM, 47, 0.021, choices=["local: 47 items"] * 15),
    fast(report.LIGHT, 47, 0.7),
    fast(report.HEAVY, 47, 0.3),
]


def changed(name: str, **changes: Any) -> list[Row]:
    return [replace(row, **changes) if row.name == name else row for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        (ROWS, ""),
        (changed(report.DASK, missing=1), "no vector of ours"),
        (changed(report.AUTO_WARM, wrong=1), "no vector of ours"),
        (changed(report.LOCAL, failures=["late"]), "no vector of ours"),
        (changed(report.HEAVY, wrong=47), ""),  # it is told, and not asked of them
        (changed(report.AUTO_WARM, warm=[0.03] * 3), "auto at most"),
        (changed(report.AUTO_WARM, warm=[0.01, 0.03, 0.03]), ""),  # or it is noise
        (changed(report.LIGHT, warm=[0.01] * 3), "faster than sollol, light"),
        (changed(report.HEAVY, first=[1.0] * 3), "faster than sollol, Dask"),
        (changed(report.DASK, left=2), "leaves a process"),
        (changed(report.LIGHT, left=2), ""),
    ],
)
def test_targets(rows: list[Row], missed: str) -> None:
    found = [target for target in report.targets(rows) if not target.is_met]
    assert [missed in target.text for target in found] == [True] * bool(missed)


def test_targets_are_of_what_was_measured() -> None:
    said = [target.text for target in report.targets(ROWS[:2])]
    assert said == [
        "no vector of ours missing, wrong or out of order",
        "none of ours leaves a process behind",
    ]
    assert not report.targets([])[0].is_met


@pytest.mark.parametrize(
    ("some", "others", "slower"),
    [
        ([2.0], [1.0], True),
        ([1.0], [2.0], False),
        ([1.0, 3.0, 3.0], [1.0, 2.0, 2.0], False),
        ([3.0, 3.0, 4.0], [1.0, 2.0, 2.0], True),
    ],
)
def test_slower_is_more_than_chance(some: list[float], others: list[float], slower: bool) -> None:
    assert report.is_slower(some, others) == slower


def test_the_table_shows_what_there_is() -> None:
    part = fast(report.LIGHT, 50_000, 5.0, given=2_500, bound=0.25)
    failed = Row(report.RAY, 50_000, 50_000, 5.0, failures=["has ended"])
    rows = [*ROWS, part, failed]
    lines = report.table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    cells = "47 in-process 1.10 1.52 0.020 2,350 4.26 30 20 25 0.50 213 0 0"
    assert " ".join(lines[2].split()) == cells
    assert lines[-2].strip().startswith("50,000* ")
    assert " ".join(lines[-1].split()) == "50,000 Ray" + " -" * 10 + " 0 0"
    said = "\n".join(report.notes(rows))
    assert "47 texts: bound 0.005 s" in said
    assert "sollol, light: one batch, of 2,500" in said
    assert said.count("local: 47 items") == 1
    assert "50,000 texts, Ray: has ended" in said
    json.dumps(report.as_json(rows))
