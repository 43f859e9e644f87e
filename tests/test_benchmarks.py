"""The benchmarks run, in small: what they measure is not asked here, only that they can."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from aiosollol.testing import Fault, fake_tokens
from benchmarks import makespan, simulate
from benchmarks.chaos import report, scenes
from benchmarks.chaos.__main__ import measure
from benchmarks.chaos.places import Here
from benchmarks.client import batch, chat, embed, memory
from benchmarks.client.report import Row as Comparison
from benchmarks.client.report import Table
from benchmarks.scenarios import Scenario, all_scenarios
from benchmarks.simulator import SimNode, lower_bound
from benchmarks.table import Row, table, targets

pytestmark = pytest.mark.anyio


def tiny(**fate: float | str) -> Scenario:
    """A tenth of a second's work for two nodes; the second may meet a fate."""
    nodes = [SimNode("n0", per_item=0.005), SimNode("n1", per_item=0.005)]
    nodes[1].fate = [(0.03, what) for what in fate.values()]
    return Scenario("tiny", nodes, [300] * 40)


def test_scenarios_are_the_promised_ones() -> None:
    scenarios = all_scenarios()
    assert len(scenarios) == 10
    assert len({scenario.name for scenario in scenarios}) == 10
    for scenario in scenarios:
        texts = scenario.texts()
        assert [len(text) for text in texts] == list(scenario.lengths)
        assert len(set(texts)) == len(texts)
        assert [fake_tokens(text) for text in texts] == scenario.tokens
    by_name = {scenario.name: scenario for scenario in scenarios}
    assert by_name["1 at 10 ms, 2 at 100 ms: 200"].bound == pytest.approx(200 / 120)


@pytest.mark.parametrize(
    ("fate", "bound"),
    [
        ([], 1.0),  # 200 items at 100 and 100 a second
        ([(0.5, "die")], 1.5),  # half is left, for one
        ([(0.5, 10.0)], 0.5 + 100 / 110),
        ([(0.5, "die"), (0.6, "return")], 1.05),
        ([(2.0, "die")], 1.0),  # too late to matter
    ],
)
def test_lower_bound_knows_the_fate(fate: list[tuple[float, float | str]], bound: float) -> None:
    nodes = [SimNode("n0", per_item=0.01), SimNode("n1", per_item=0.01, fate=fate)]
    assert lower_bound(nodes, [10.0] * 200) == pytest.approx(bound)


def test_lower_bound_is_infinite_if_nobody_is_left() -> None:
    assert lower_bound([SimNode("n0", per_item=1.0, fate=[(0.5, "die")])], [1.0]) == float("inf")


@pytest.mark.parametrize("fate", [{}, {"slow": 10.0}, {"dead": "die"}])
async def test_makespan_measures_a_scenario(fate: dict[str, float | str]) -> None:
    scenario = tiny(**fate)
    (measured,) = await makespan.measure_all([scenario], runs=1)
    (cold,), (warm,) = measured.cold, measured.warm
    assert cold.wrong == warm.wrong == 0
    assert cold.seconds > 0.9 * scenario.bound
    assert warm.seconds > 0.9 * scenario.bound
    assert warm.predicted > 0
    assert (measured.even is None) == scenario.is_deadly
    json.dumps(measured.figures())


@pytest.mark.parametrize("fate", [{}, {"slow": 10.0}, {"dead": "die"}])
def test_simulate_measures_a_scenario(fate: dict[str, float | str]) -> None:
    row = simulate.measure(tiny(**fate), runs=2)
    assert row.wrong == 0
    assert row.bound <= row.warm
    assert row.decision is not None
    assert row.decision > 0


def test_simulate_prints_tables_and_writes_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "figures.json"
    simulate.main(["--runs", "1", "--only", "10, 12, 11 ms: 100", "--json", str(path)])
    said = capsys.readouterr().out
    assert "10, 12, 11 ms: 1000" in said
    assert "warm" in said
    assert len(json.loads(path.read_text())) == 4  # two scenarios, two noises


ROW = Row("some", 2.0, 2.1, 2.02, 3.0, 2.5, 2.0, 0.01, 20, 0)


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        (ROW, ""),
        (replace(ROW, warm=2.07), "warm: at most"),
        (replace(ROW, bound=0.9, warm=0.95, cold=0.99), ""),  # too short to be judged
        (replace(ROW, cold=2.21), "cold: at most"),
        (replace(ROW, single=2.01), "not slower than"),
        (replace(ROW, error=0.06), "prediction"),
        (replace(ROW, error=0.06, is_fated=True), ""),  # nobody can know a fate
        (replace(ROW, warm=2.4, chunk_seconds=0.5), ""),  # a death has a target of its own
        (replace(ROW, warm=2.6, chunk_seconds=0.5, single=None, even=None), "a death"),
        (replace(ROW, wrong=1), "no text"),
    ],
)
def test_targets(row: Row, missed: str) -> None:
    found = [target.text for target in targets([row]) if not target.is_met]
    assert len(found) == bool(missed)
    assert all(missed in text for text in found)


def test_table_shows_what_there_is() -> None:
    lines = table([ROW, replace(ROW, name="dies", even=None, decision=12.34)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "1.010" in lines[2]
    assert lines[3].endswith("12.3 us")


async def test_chaos_measures_a_run() -> None:
    async with Here(2) as place:
        scene = scenes.Scene("x", scenes.plain(Fault.ERROR_500, 1))
        row, log = await measure(place, scene, 1.0, 30.0, warm_up=0.1)
    assert row.requests > 10
    assert row.wrong == row.failed == 0
    assert row.hedges + row.retries == 0 or log
    assert report.table([row]).splitlines()[2].startswith("x")


def test_chaos_has_every_fault_on_one_node_and_on_two() -> None:
    found = scenes.all_scenes()
    assert len({scene.name for scene in found}) == len(found)
    plain = [scene for scene in found if scene.is_plain]
    assert {scene.blow for scene in plain if scene.count == 1} == {*Fault, "kill", "cut", "drop"}
    assert {scene.blow for scene in plain if scene.count == 2} == {
        *(set(Fault) - scenes._ALIKE),
        *("kill", "cut", "drop"),
    }
    assert [scene.blow for scene in plain].count(None) == 3
    quick = scenes.all_scenes(quick=True)
    assert not [scene for scene in quick if scene.is_plain and scene.count == 2]
    assert {scene.name for scene in quick} < {scene.name for scene in found}


@pytest.mark.parametrize(
    ("name", "bad", "outage"),
    [
        ("proxy without servers for 0.05 s", [], 0.05),
        ("proxy without servers for 3 s, batches", [], 3.0),
        ("one answers 400 for ever", [0], 0.0),
        ("one flaps every 3 s", [], 0.0),
        ("one flaps, one is slow, one answers 400", [2], 0.0),
        ("9 faulty of 11, batches", list(range(9)), 0.0),
    ],
)
def test_chaos_has_faults_that_last_or_return(name: str, bad: list[int], outage: float) -> None:
    (scene,) = [scene for scene in scenes.all_scenes(quick=True) if scene.name == name]
    assert [strike.index for strike in scene.bad] == bad
    assert scene.outage == outage
    assert scene.work == ("batch" if name.endswith("batches") else "live")


async def test_chaos_measures_batches_with_a_node_that_fails_for_ever() -> None:
    strikes = (scenes.Strike(0, Fault.BAD_400_UNKNOWN, 0.0, math.inf),)
    async with Here(2) as place:
        scene = scenes.Scene("x", strikes, work="batch", nodes=2)
        row, _ = await measure(place, scene, 0.5, 30.0, warm_up=0.1, batch=10)
    assert row.texts >= 10
    assert (row.missing, row.wrong, row.recovery) == (0, 0, None)
    assert row.bad_share is not None


def test_chaos_counts_the_share_of_a_bad_node_after_its_tenth_request() -> None:
    sent = [(0.0, [5, 0]), (1.0, [13, 10]), (2.0, [17, 20]), (3.0, [18, 119])]
    assert report.share_of_bad(sent, 0, 0.0) == 0.01
    assert report.share_of_bad(sent[:2], 0, 0.0) == 0.0
    assert report.share_of_bad(sent, 0, 2.0) == 0.0


def test_chaos_finds_when_a_share_is_back() -> None:
    # Two nodes, a sample each second; the second does nothing from 5 s on, and its share from 9.
    done = [[at, at if at < 5 else 4 if at < 9 else at - 4] for at in range(20)]
    samples = [(float(at), each) for at, each in enumerate(done)]
    assert report.recovery(samples, [], 5.0, 6.0) is None
    assert report.recovery(samples, [1], 5.0, 6.0) == 3.0
    assert report.recovery(samples[:9], [1], 5.0, 6.0) == float("inf")


def test_client_benchmarks_compare_all_that_they_should(require: Callable[..., None]) -> None:
    require("nginx")
    calls = embed.run(1, calls=8, in_flight=(1, 4))
    vectors = batch.run(1, texts=64, dims=(8,))
    speed = batch.throughput(1, texts=64)
    streams = chat.run(1, streams=2, paced=1)
    stream = memory.run(200)
    assert [len(t.rows) for t in (calls, vectors, speed, streams, stream)] == [6, 4, 1, 6, 2]
    for each in (calls, vectors, speed, streams, stream):
        assert all(row.ours > 0 and row.theirs > 0 for row in each.rows), each
        assert each.server in str(each)


@pytest.mark.parametrize(
    ("ratio", "limit", "at_least", "is_met"),
    [
        (1.2, 1.25, False, True),
        (1.3, 1.25, False, False),
        (99.0, 100.0, True, False),
        (101.0, 100.0, True, True),
        (5.0, None, False, None),
    ],
)
def test_a_comparison_knows_its_target(
    ratio: float, limit: float | None, at_least: bool, is_met: bool | None
) -> None:
    row = Comparison("ours", "theirs", ratio, 1.0, "us", ratio, limit, at_least)
    assert row.is_met is is_met
    whole = Table(1, "title", "a server", [row])
    assert ("MISSED" in str(whole)) is (is_met is False)
    assert whole.as_json()["rows"][0]["is_met"] is is_met
