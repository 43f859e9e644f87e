"""The benchmarks of the gateway: the requests that they send, and the output that they read."""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from conftest import unmet
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gateway import report as gateway
from benchmarks.gateway import wrk
from benchmarks.gateway.asking import EMBED, LONE_TEXT, Question
from benchmarks.gateway.asking import chat as streamed
from benchmarks.gateway.load import Answer, closed_loop, percentile
from benchmarks.gateway.processes import (
    Process,
    Program,
    family,
    free_port,
    is_listening,
    read_stat,
)

pytestmark = pytest.mark.anyio
WRK = """\
Running 2s test @ http://127.0.0.1:8000/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   552.05us  125.32us   6.92ms   95.04%
    Req/Sec    29.18k     1.11k   30.59k    85.00%
  58084 requests in 2.00s, 597.82MB read
{more}Requests/sec:  29028.43
Transfer/sec:    298.77MB
"""


@pytest.mark.parametrize(
    ("more", "failed"),
    [
        ("", 0),
        ("  Non-2xx or 3xx responses: 7\n", 7),
        ("  Socket errors: connect 1, read 2, write 0, timeout 4\n", 7),
        (
            "  Socket errors: connect 0, read 2, write 0, timeout 0\n"
            "  Non-2xx or 3xx responses: 40\n",
            42,
        ),
    ],
)
def test_wrk_is_read(more: str, failed: int) -> None:
    assert wrk.read(WRK.format(more=more)) == wrk.Result(58084, 2.0, 29028.43, failed)


@pytest.mark.parametrize(("said", "seconds"), [("900.10ms", 0.9001), ("1.50m", 90.0)])
def test_wrk_has_units(said: str, seconds: float) -> None:
    found = wrk.read(WRK.format(more="").replace("2.00s,", f"{said},"))
    assert found.seconds == pytest.approx(seconds)


def test_wrk_that_says_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:1 Connection refused")


def test_wrk_is_told_bytes_as_lua_reads_them() -> None:
    said = wrk.script(b'POST "x"\r\n', b"\\\x00\xff", 41)
    assert r'local before = "\080\079\083\084\032\034\120\034\013\010"' in said
    assert r'local after = "\092\000\255"' in said
    assert "local number = 41\n" in said


@pytest.mark.parametrize("question", [EMBED, LONE_TEXT, streamed(200)])
def test_a_question_is_a_request_with_a_number(question: Question) -> None:
    first, second = question.whole("a-key", 1), question.whole("a-key", 2)
    assert first.replace(b"0000000001", b"0000000002") == second
    head, _, body = first.partition(b"\r\n\r\n")
    assert head.startswith(b"POST %s HTTP/1.1\r\n" % question.path.encode())
    assert b"Authorization: Bearer a-key" in head
    assert b"Content-Length: %d" % len(body) in head
    assert json.loads(body).keys() == question.fields.keys()


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'8\r\n{"a":1}\n\r\n12\r\n{"b":"0\\r\\n\\r\\n"}\n\r\n0\r\n\r\n'
)
SIZED = b"HTTP/1.1 503 No\r\ncontent-length: 10\r\n\r\n0\r\n\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "lines"), [(CHUNKED, 200, 2), (SIZED, 503, 0), (EMPTY, 200, 0)]
)
@given(cuts=st.lists(st.integers(1, 120), max_size=12))
def test_an_answer_is_the_same_however_it_is_cut(
    data: bytes, status: int, lines: int, cuts: list[int]
) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(places)]
    answer = Answer()
    assert [answer.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (answer.status, answer.lines, answer.reads) == (status, lines, len(pieces))
    assert answer.is_begun


def test_a_stream_has_begun_with_its_first_line() -> None:
    answer = Answer()
    end = CHUNKED.index(b"}\n") + 2
    assert not answer.feed(CHUNKED[: end - 1])
    assert not answer.is_begun
    assert not answer.feed(CHUNKED[end - 1 : end])
    assert answer.is_begun


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9
    assert sum(value < found for value in values) < len(values) * percent / 100 + 1e-9


def test_percentiles_of_a_hundred() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50.0, 99.0, 100.0]


def test_a_process_is_read_whatever_its_name() -> None:
    fields = "S 17 42 42 0 -1 4194560 1 0 0 0 12 3 0 0 20 0 1 0 987654 1000 2"
    assert read_stat(f"42 (a b) R 1) {fields}\n") == Process(42, 17, 987654)


def test_a_family_is_all_descendants() -> None:
    processes = [Process(pid, parent, pid) for pid, parent in ((1, 0), (5, 1), (6, 5), (7, 6))]
    processes += [Process(8, 1, 8), Process(9, 8, 9)]
    assert {each.pid for each in family(processes, 5)} == {5, 6, 7}
    assert {each.pid for each in family(reversed(processes), 1)} == {1, 5, 6, 7, 8, 9}
    assert family(processes, 4) == set()


def fast(work: str, name: str, cpu: float, **more: list[float]) -> gateway.Row:
    """A row of three rounds, of which the second was disturbed."""
    row = gateway.Row(work, name, cpu=[cpu, 5 * cpu, cpu], p50=[0.0002] * 3, p99=[0.0004] * 3)
    for key, value in more.items():
        setattr(row, key, value)
    return row


ROWS = [
    fast(gateway.EMBED, gateway.NO_PROXY, 0.0),
    fast(gateway.EMBED, gateway.FLOOR, 100e-6, rates=[9000.0] * 3, busy=[0.9] * 3),
    fast(gateway.EMBED, gateway.OURS, 120e-6, p50=[0.0009] * 3, p99=[0.0023] * 3, busy=[0.9] * 3),
    fast(gateway.CHAT, gateway.FLOOR, 30e-6, at_once=[8.0] * 3, busy=[0.3] * 3),
    fast(gateway.CHAT, gateway.OURS, 36e-6, at_once=[7.0] * 3, busy=[0.3] * 3),
    fast(gateway.WHOLE_CHAT, gateway.OURS, 120e-6),
    fast(gateway.WHOLE_CHAT, gateway.SOLLOL, 1300e-6),
    fast(gateway.OPENAI_EMBED, gateway.OURS, 120e-6),
    fast(gateway.OPENAI_EMBED, gateway.LITELLM, 6100e-6),
]
LISTS = gateway.Lists(1000, 4, [1.0, 9.0, 1.0], [3.9, 4.0, 3.9])


def changed(work: str, name: str, **changes: Any) -> list[gateway.Row]:
    return [replace(row, **changes) if is_of(row, work, name) else row for row in ROWS]


def is_of(row: gateway.Row, work: str, name: str) -> bool:
    return (row.work, row.name) == (work, name)


@pytest.mark.parametrize(
    ("rows", "lists", "missed"),
    [
        (ROWS, LISTS, ""),
        (ROWS, None, ""),
        (changed(gateway.EMBED, gateway.OURS, cpu=[126e-6] * 3), LISTS, "CPU per request: at most"),
        (changed(gateway.CHAT, gateway.OURS, cpu=[38e-6] * 3), LISTS, "CPU per streamed chunk"),
        (changed(gateway.EMBED, gateway.OURS, p50=[0.0011] * 3), LISTS, "embed: added p50"),
        (changed(gateway.EMBED, gateway.OURS, p99=[0.0025] * 3), LISTS, "embed: added p99"),
        (changed(gateway.WHOLE_CHAT, gateway.SOLLOL, cpu=[1100e-6] * 3), LISTS, "below sollol"),
        (changed(gateway.OPENAI_EMBED, gateway.LITELLM, cpu=[5e-3] * 3), LISTS, "below LiteLLM"),
        (ROWS, replace(LISTS, nginx=[3.7] * 3), "a list over 4 nodes"),
        (changed(gateway.EMBED, gateway.FLOOR, failed=1), LISTS, "no request failed"),
    ],
)
def test_targets_of_the_gateway(
    rows: list[gateway.Row], lists: gateway.Lists | None, missed: str
) -> None:
    found = [target for target in gateway.targets(rows, lists) if not target.is_met]
    assert [missed in target.text for target in found] == [True] * bool(missed)


def test_targets_of_the_gateway_are_of_what_was_measured() -> None:
    said = [target.text for target in gateway.targets(ROWS[3:5], None)]
    assert said == [
        "CPU per streamed chunk: at most 1.25 times the 40-line proxy",
        "no request failed",
    ]


def test_the_table_of_the_gateway_shows_what_there_is() -> None:
    lines = gateway.table(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 2
    ours = next(line for line in lines if line.startswith("embed") and "ours" in line)
    assert " ".join(ours.split()) == "embed ours 120.0 1.20 - 90% 0.90 0.70 2.30 1.90 - - 0"
    plain = next(line for line in lines if "no proxy" in line)
    assert " ".join(plain.split()) == "embed no proxy - - - - 0.20 - 0.40 - - - 0"
    assert "3.90 times faster" in gateway.table_of_lists(LISTS)
    json.dumps(gateway.as_json(ROWS, LISTS))


def test_a_stream_through_the_floor_is_counted(tmp_path: pathlib.Path) -> None:
    if sys.platform != "linux" or importlib.util.find_spec("uvloop") is None:
        unmet("not here: Linux and uvloop")
    node, proxy = free_port(), free_port()
    homes = [tmp_path / name for name in ("node", "proxy")]
    for home in homes:
        home.mkdir()
    module = [sys.executable, "-m"]
    with (
        Program([*module, "benchmarks.gateway.upstream", str(node)], homes[0]) as first,
        Program(
            [*module, "benchmarks.gateway.floor", str(proxy), f"http://127.0.0.1:{node}"], homes[1]
        ) as second,
    ):
        for program, port in ((first, node), (second, proxy)):
            program.wait_until(functools.partial(is_listening, port), 60)
        make = functools.partial(streamed(5).whole, "none")
        load = closed_loop(proxy, make, connections=2, count=4)
        assert (load.lines, load.failed, len(load.firsts)) == (4 * 6, 0, 4)
        assert load.coming > 0
        lone = closed_loop(proxy, functools.partial(LONE_TEXT.whole, "none"), count=3)
        assert (lone.failed, len(lone.firsts)) == (0, 3)
        assert second.cpu_seconds() > 0
