"""W3C Trace Context: what is passed on, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.telemetry.tracing import read_trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


SOUND = [
    pytest.param(PARENT, id="sampled"),
    pytest.param(f"00-{TRACE}-{SPAN}-00", id="not sampled"),
    pytest.param(f"00-{TRACE}-{SPAN}-ff", id="flags that are not known yet"),
    pytest.param(f"01-{TRACE}-{SPAN}-01", id="a version that is not known yet"),
    pytest.param(f"fe-{TRACE}-{SPAN}-01-and.more", id="which may have more"),
    pytest.param(f"01-{TRACE}-{SPAN}-01-", id="or nothing more"),
]


@pytest.mark.parametrize("parent", SOUND)
def test_what_is_sound_is_passed_on_as_it_is(parent: str) -> None:
    assert read_trace([parent], []) == {"traceparent": parent}
    assert read_trace([f" {parent}\t"], []) == {"traceparent": parent}


MALFORMED = [
    pytest.param("", id="empty"),
    pytest.param("00", id="a version alone"),
    pytest.param(f"ff-{TRACE}-{SPAN}-01", id="a version that cannot be"),
    pytest.param(f"00-{'0' * 32}-{SPAN}-01", id="no trace"),
    pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="no parent"),
    pytest.param(f"00-{TRACE.upper()}-{SPAN}-01", id="capitals"),
    pytest.param(f"00-{TRACE[:-1]}-{SPAN}-01", id="a trace too short"),
    pytest.param(f"00-{TRACE}-{SPAN}0-01", id="a parent too long"),
    pytest.param(f"00-{TRACE}-{SPAN}-1", id="half of the flags"),
    pytest.param(f"00-{TRACE}-{SPAN}-01-more", id="more than its version has"),
    pytest.param(f"01-{TRACE}-{SPAN}-01more", id="more without a hyphen"),
    pytest.param(f"01-{TRACE}-{SPAN}-01-a b", id="a space"),
    pytest.param(f"01-{TRACE}-{SPAN}-01-é", id="not ASCII"),
    pytest.param(f"{PARENT}\r\nX-Evil: 1", id="a line break"),
    pytest.param(f"{PARENT}\n", id="a line break at the end"),
    pytest.param(f"{PARENT},{PARENT}", id="two in one"),
    pytest.param(f"01-{TRACE}-{SPAN}-01-{'a' * 5000}", id="far too long"),
]


@pytest.mark.parametrize("parent", MALFORMED)
def test_what_is_malformed_is_dropped(parent: str) -> None:
    assert read_trace([parent], ["vendor=value"]) is None


def test_none_and_two_are_no_trace() -> None:
    assert read_trace([], ["vendor=value"]) is None
    assert read_trace([PARENT, PARENT], []) is None


STATES = [
    pytest.param(["rojo=00f067aa0ba902b7"], "rojo=00f067aa0ba902b7", id="one"),
    pytest.param(["rojo=1,congo=t61"], "rojo=1,congo=t61", id="two"),
    pytest.param(["rojo=1", "congo=t61"], "rojo=1,congo=t61", id="two headers"),
    pytest.param(["rojo=1 ,\tcongo=t61"], "rojo=1,congo=t61", id="blanks around"),
    pytest.param(["rojo=1,,congo=t61,"], "rojo=1,congo=t61", id="empty members"),
    pytest.param(["fw529a3039@dt=FfAB: +/"], "fw529a3039@dt=FfAB: +/", id="a tenant"),
    pytest.param(["0a=1"], "0a=1", id="a digit first"),
    pytest.param([f"{'k' * 256}={'v' * 256}"], f"{'k' * 256}={'v' * 256}", id="the longest"),
    pytest.param([""], "", id="empty"),
    pytest.param(["Rojo=1"], "", id="a capital"),
    pytest.param(["rojo"], "", id="no value"),
    pytest.param(["rojo="], "", id="an empty value"),
    pytest.param(["rojo=1=2"], "", id="two equals signs"),
    pytest.param(["rojo=1,rojo=2"], "", id="a key twice"),
    pytest.param(["rojo=\x01"], "", id="a control character"),
    pytest.param(["rojo=é"], "", id="not ASCII"),
    pytest.param(["rojo=1\r\nX-Evil: 1"], "", id="a line break"),
    pytest.param([f"{'k' * 257}=1"], "", id="a key too long"),
    pytest.param([f"k={'v' * 257}"], "", id="a value too long"),
    pytest.param([",".join(f"k{n}=1" for n in range(33))], "", id="33 members"),
    pytest.param([f"k{n}={'v' * 256}" for n in range(32)], "", id="far too long"),
]


@pytest.mark.parametrize(("states", "passed"), STATES)
def test_a_malformed_state_is_dropped_and_the_rest_is_kept(states: list[str], passed: str) -> None:
    found = read_trace([PARENT], states)
    expected = {"traceparent": PARENT, "tracestate": passed}
    assert found == {name: value for name, value in expected.items() if value}


@settings(deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=80), max_size=3))
def test_nothing_but_printable_ascii_is_passed_on(parent: str, states: list[str]) -> None:
    for found in (read_trace([parent], states), read_trace([PARENT], states)):
        for value in (found or {}).values():
            assert value.isascii()
            assert value.isprintable()


@settings(deadline=None)
@given(st.from_regex(rf"\A[0-9a-f]{{2}}-{TRACE}-{SPAN}-[0-9a-f]{{2}}\Z"))
def test_every_version_but_one_is_passed_on(parent: str) -> None:
    assert (read_trace([parent], []) is None) == parent.startswith("ff")
