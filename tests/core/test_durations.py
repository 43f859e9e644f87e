"""core/durations: what Go's time.ParseDuration reads, and how it refuses, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core import durations
from aiosollol.core.durations import LONGEST, parse_duration
from aiosollol.core.request import EmbedSettings
from aiosollol.errors import InvalidInput

SECOND = 10**9
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("-0s", 0),
        ("5m", 5 * MINUTE),
        ("+5m", 5 * MINUTE),
        ("-1s", -SECOND),
        ("1h30m", 90 * MINUTE),
        ("30m1h", 90 * MINUTE),
        ("1m1m", 2 * MINUTE),
        ("1.5s", 3 * SECOND // 2),
        ("1.s", SECOND),
        (".5s", SECOND // 2),
        ("1.0000s", SECOND),
        ("-1.5h", -90 * MINUTE),
        ("7ns", 7),
        ("0.9ns", 0),
        ("7us", 7_000),
        ("7\u00b5s", 7_000),  # the micro sign
        ("7\u03bcs", 7_000),  # the Greek letter
        ("7ms", 7_000_000),
        ("1h1m1s1ms1us1ns", HOUR + MINUTE + SECOND + 1_001_001),
        ("000000000000000000000005m", 5 * MINUTE),
        ("0.3333333333333333333h", 20 * MINUTE),
        ("0.100000000000000000000h", 6 * MINUTE),
        ("0.830103483285477580700h", 49 * MINUTE + 48 * SECOND + 372_539_827),
        ("9007199254740993ns", 2**53 + 1),
        ("9223372036854775807ns", 2**63 - 1),
        ("9223372036.854775807s", 2**63 - 1),
        ("-9223372036854775808ns", -(2**63)),
        ("-2562047h47m16.854775808s", -(2**63)),
        ("0." + "0" * 400 + "1s", 0),
        ("1s" * 1000, 1000 * SECOND),
        ("0" * (LONGEST - 2) + "1s", SECOND),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds
    EmbedSettings(model="m", keep_alive=text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'invalid duration ""'),
        ("-", 'invalid duration "-"'),
        ("s", 'invalid duration "s"'),
        (".", 'invalid duration "."'),
        ("-.", 'invalid duration "-."'),
        ("+.s", 'invalid duration "+.s"'),
        ("--1s", 'invalid duration "--1s"'),
        ("soon", 'invalid duration "soon"'),
        (" 5m", 'invalid duration " 5m"'),
        ("5", 'missing unit in duration "5"'),
        ("1.5", 'missing unit in duration "1.5"'),
        ("00", 'missing unit in duration "00"'),
        ("1h5", 'missing unit in duration "1h5"'),
        ("1.2.3s", 'missing unit in duration "1.2.3s"'),
        ("1d", 'unknown unit "d" in duration "1d"'),
        ("5mx", 'unknown unit "mx" in duration "5mx"'),
        ("5M", 'unknown unit "M" in duration "5M"'),
        ("1s ", 'unknown unit "s " in duration "1s "'),
        ("1e3s", 'unknown unit "e" in duration "1e3s"'),
        ("1s-1s", 'unknown unit "s-" in duration "1s-1s"'),
        ("\u0665m", r'invalid duration "\xd9\xa5m"'),  # a digit, but none of Go's
        ('1"', r'unknown unit "\"" in duration "1\""'),
        ("1\\", r'unknown unit "\\" in duration "1\\"'),
        ("1\n\u00e9", r'unknown unit "\x0a\xc3\xa9" in duration "1\x0a\xc3\xa9"'),
        ("9223372036854775808ns", 'invalid duration "9223372036854775808ns"'),
        ("-9223372036854775809ns", 'invalid duration "-9223372036854775809ns"'),
        ("9223372036854775809", 'invalid duration "9223372036854775809"'),
        ("9223372036.854775808s", 'invalid duration "9223372036.854775808s"'),
        ("9223372036854ms775us808ns", 'invalid duration "9223372036854ms775us808ns"'),
        ("3000000h", 'invalid duration "3000000h"'),
        ("1" * 1400, f'invalid duration "{"1" * 1400}"'),
        ("1s" * LONGEST, f'invalid duration "{"1s" * 32}"...'),
    ],
)
def test_refusals_in_gos_words(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_duration(text)
    assert str(caught.value) == f"time: {problem}"
    with pytest.raises(InvalidInput, match="keep_alive must be seconds, or a duration"):
        EmbedSettings(model="m", keep_alive=text)


@pytest.mark.parametrize("value", [True, [], float("inf"), float("nan"), 10**400])
def test_numbers_that_are_no_keep_alive(value: object) -> None:
    with pytest.raises(InvalidInput, match="keep_alive must be seconds, or a duration") as caught:
        EmbedSettings(model="m", keep_alive=value)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 150


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(sorted(durations._UNITS)))))
def test_steps_add_up(steps: list[tuple[int, str]]) -> None:
    total = sum(number * durations._UNITS[unit] for number, unit in steps)
    text = "".join(f"{number}{unit}" for number, unit in steps)
    if not steps or total >= 2**63:
        with pytest.raises(InvalidInput):
            parse_duration(text)
    else:
        assert parse_duration(text) == total
        assert parse_duration(f"-{text}") == -total


@settings(deadline=None)
@given(st.text("0123456789.hmsnuµ+- ", max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found: int | str = parse_duration(text)
    except InvalidInput as error:
        found = str(error)
    assert -(2**63) <= found < 2**63 if isinstance(found, int) else found.startswith("time: ")


def test_a_number_too_long_to_be_written_is_no_keep_alive() -> None:
    with pytest.raises(InvalidInput, match="not a number that large"):
        EmbedSettings(model="m", keep_alive=-(10**5000))
