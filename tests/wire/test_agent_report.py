"""What an agent tells, to bytes and back: whole, with parts missing, and as nonsense."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import project_paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.errors import ProtocolError
from aiosollol.wire import agent
from aiosollol.wire.agent import AgentReport, Gpu, dump_report, load_report

GIB = 2**30
L4 = Gpu("NVIDIA L4", 24 * GIB, 20 * GIB, 0.25)
REPORT = AgentReport(
    "9c1f", "http://127.0.0.1:11434", "0.1.0", 0.5, 64 * GIB, 48 * GIB, (L4, Gpu("NVIDIA A2"))
)


def load(value: Any) -> AgentReport:
    return load_report("a", json.dumps(value).encode())


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
share = st.none() | st.floats(0, 1)


@st.composite
def memory(draw: st.DrawFn) -> tuple[int | None, int | None]:
    total = draw(st.none() | st.integers(0, 2**63))
    return total, draw(st.none() | st.integers(0, 2**63 if total is None else total))


gpus = st.builds(lambda name, memory, busy: Gpu(name, *memory, busy), text, memory(), share)
reports = st.builds(
    lambda machine, ollama, version, load, memory, gpus: AgentReport(
        machine, ollama, version, load, *memory, tuple(gpus)
    ),
    text,
    text,
    text,
    share,
    memory(),
    st.lists(gpus, max_size=4),
)


@given(reports)
def test_what_is_written_is_read(report: AgentReport) -> None:
    assert load_report("a", dump_report(report)) == report


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*AgentReport._fields, *Gpu._fields]), inner, max_size=4
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_a_protocol_error_or_a_sound_report(body: bytes) -> None:
    try:
        report = load_report("a", body)
    except ProtocolError:
        return
    assert load_report("a", dump_report(report)) == report


def test_what_is_unknown_is_written_as_null() -> None:
    assert json.loads(dump_report(AgentReport(gpus=(Gpu(),)))) == {
        "machine": "",
        "ollama": "",
        "version": "",
        "cpu_load": None,
        "memory_total": None,
        "memory_free": None,
        "gpus": [{"name": "", "memory_total": None, "memory_free": None, "utilisation": None}],
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, AgentReport()),
        ({"gpus": None, "cpu_load": None, "machine": None}, AgentReport()),
        ({"gpus": [{}]}, AgentReport(gpus=(Gpu(),))),
        ({"cpu_load": 0}, AgentReport(cpu_load=0.0)),
        ({"cpu_load": 1}, AgentReport(cpu_load=1.0)),
        ({"memory_free": 5}, AgentReport(memory_free=5)),
        ({"memory_total": 5, "memory_free": 5}, AgentReport(memory_total=5, memory_free=5)),
        ({"machine": "m", "of a later version": [1, {}]}, AgentReport("m")),
        ({"gpus": [{"name": "x", "watts": 300}]}, AgentReport(gpus=(Gpu("x"),))),
    ],
)
def test_what_is_missing_is_not_known(value: Any, expected: AgentReport) -> None:
    assert load(value) == expected


def test_the_example_in_the_docstring_is_read() -> None:
    example = re.search(r"    \{\n.*?\n    \}", inspect.getdoc(agent) or "", re.DOTALL)
    assert example is not None
    without_words = re.sub(r"([\[{,0-9]) {3,}\S.*", r"\1", example[0])
    report = load_report("a", without_words.encode())
    assert report.gpus[0] == Gpu("NVIDIA GeForce RTX 4090", 25757220864, 19327352832, 0.63)
    assert set(json.loads(without_words)) == set(AgentReport._fields)


def test_the_example_in_the_documentation_is_read() -> None:
    page = project_paths.DOCS / "agent.md"
    (example,) = re.findall(r"```json\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    report = load_report("a", example.encode())
    assert json.loads(dump_report(report)) == json.loads(example)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "nothing, which is not JSON"),
        (b"<html>", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"cpu_load": NaN}', "not JSON"),
        (b'{"cpu_load": 1e999}', "not JSON"),
        (b'{"cpu_load": -0.1}', "'cpu_load' is -0.1, not a number from 0 to 1"),
        (b'{"cpu_load": 1.1}', "'cpu_load' is 1.1"),
        (b'{"cpu_load": 27}', "'cpu_load' is 27"),
        (b'{"cpu_load": "0.5"}', "'cpu_load' is '0.5'"),
        (b'{"cpu_load": true}', "'cpu_load' is True"),
        (b'{"memory_total": -1}', "'memory_total' is -1, not a number of bytes"),
        (b'{"memory_total": 1.5}', "'memory_total' is 1.5"),
        (b'{"memory_total": 1e300}', "'memory_total' is 1e+300"),
        (b'{"memory_free": "8 GiB"}', "'memory_free' is '8 GiB'"),
        (b'{"memory_free": false}', "'memory_free' is False"),
        (b'{"memory_total": 1, "memory_free": 2}', "not at most memory_total, 1"),
        (b'{"machine": 7}', "'machine' is 7, not a string"),
        (b'{"ollama": []}', "'ollama' is [], not a string"),
        (b'{"version": {}}', "'version' is {}, not a string"),
        (b'{"gpus": {}}', "'gpus' is {}, not a list"),
        (b'{"gpus": "none"}', "'gpus' is 'none'"),
        (b'{"gpus": [{}, 3]}', "'gpus[1]' is 3, not an object"),
        (b'{"gpus": [null]}', "'gpus[0]' is None"),
        (b'{"gpus": [{"name": 4090}]}', "'gpus[0].name' is 4090"),
        (b'{"gpus": [{"memory_free": -2}]}', "'gpus[0].memory_free' is -2"),
        (b'{"gpus": [{"memory_total": 0, "memory_free": 1}]}', "'gpus[0].memory_free' is 1"),
        (b'{"gpus": [{"utilisation": 40}]}', "'gpus[0].utilisation' is 40"),
    ],
)
def test_nonsense_is_refused_by_its_name(body: bytes, told: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_report("gpu-1", body)
    assert caught.value.node == "gpu-1"
    assert told in str(caught.value)


def test_nonsense_is_quoted_in_part() -> None:
    with pytest.raises(ProtocolError) as caught:
        load({"machine": ["x" * 100_000]})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("gpus", "total", "free", "name"),
    [
        ((), None, None, ""),
        ((Gpu("x"),), None, None, "x"),
        ((Gpu("x", 10, 4),), 10, 4, "x"),
        ((Gpu("x", 10, 4), Gpu("x", 10, 0)), 20, 4, "2 x x"),
        ((Gpu("x", 10, 4), Gpu("y", 8)), 18, 4, "x, y"),
        ((Gpu("y"), Gpu("x"), Gpu("y"), Gpu()), None, None, "2 x y, x, GPU"),
    ],
)
def test_gpus_are_summed_up(
    gpus: tuple[Gpu, ...], total: int | None, free: int | None, name: str
) -> None:
    report = AgentReport(gpus=gpus)
    assert (report.gpu_memory_total, report.gpu_memory_free, report.gpu_name) == (total, free, name)
