"""The header Retry-After: what servers send -> seconds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.wire.retry_after import MAX_SECONDS, read_retry_after

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT
CASES: list[tuple[str, float | None]] = [
    ("3", 3.0),
    (" 3 ", 3.0),
    ("0", 0.0),
    ("1.5", 1.5),
    ("60", 60.0),
    ("61", MAX_SECONDS),
    ("9" * 60, MAX_SECONDS),
    ("Sun, 06 Nov 1994 08:49:42 GMT", 5.0),
    ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
    ("Sunday, 06-Nov-94 08:49:42 GMT", 5.0),
    ("Sun Nov  6 08:49:42 1994", 5.0),
    ("Sun, 06 Nov 1994 09:49:42 +0100", 5.0),
    ("Mon, 07 Nov 1994 08:49:37 GMT", MAX_SECONDS),
    ("Sun, 06 Nov 1994 08:49:36 GMT", None),
    ("", None),
    ("-1", None),
    ("+1", None),
    ("1,2", None),
    ("1e3", None),
    ("0x10", None),
    ("soon", None),
    ("\u0663", None),  # a digit, but not one of ASCII
    ("nan", None),
    ("inf", None),
    ("Sun, 99 Nov 1994 08:49:42 GMT", None),
    ("Sun, 06 Foo 1994 08:49:42 GMT", None),
    ("Sun, 06 Nov 1994 24:49:42 GMT", None),
    ("Thu, 01 Jan 0101 00:00:00 GMT", None),
    ("9" * 100_000, None),
    ("Sun, 06 Nov 1994 08:49:42 GMT" + " " * 5000 + "x", None),
]


@pytest.mark.parametrize(("value", "seconds"), CASES, ids=lambda value: str(value)[:40])
def test_how_long_a_server_asks_to_wait(value: str, seconds: float | None) -> None:
    assert read_retry_after(value, NOW) == seconds


@settings(deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \w+"))
def test_any_value_is_read_or_ignored(value: str) -> None:
    seconds = read_retry_after(value, NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_SECONDS
