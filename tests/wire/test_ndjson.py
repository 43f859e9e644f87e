"""Lines come out the same, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.wire.ollama.client import LineSplitter

pieces = st.lists(st.binary(max_size=12) | st.text('{"a}\n\r ', max_size=12).map(str.encode))


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines, splitter.rest()


@settings(deadline=None)
@given(pieces)
def test_any_cut_gives_the_same_lines(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    *ended, rest = whole.split(b"\n")
    expected = [line for line in ended if line.strip()], rest.strip()
    assert split(pieces) == expected
    assert split([whole]) == expected
    assert split([bytes([byte]) for byte in whole]) == expected


CASES = [
    pytest.param([b""], [], b"", id="nothing"),
    pytest.param([b"a\n"], [b"a"], b"", id="a line"),
    pytest.param([b"a\nb\n"], [b"a", b"b"], b"", id="two at once"),
    pytest.param([b"a", b"b\nc", b"", b"d\n"], [b"ab", b"cd"], b"", id="in pieces"),
    pytest.param([b"a", b"\n"], [b"a"], b"", id="the line end alone"),
    pytest.param([b"a\n\n \n\r\nb\n"], [b"a", b"b"], b"", id="empty lines"),
    pytest.param([b"a\nb"], [b"a"], b"b", id="a last line without its end"),
    pytest.param([b"a\n \r"], [b"a"], b"", id="white space at the end"),
    pytest.param([b'{"\xc3', b'\xa9"}\n'], [b'{"\xc3\xa9"}'], b"", id="inside a character"),
]


@pytest.mark.parametrize(("pieces", "lines", "rest"), CASES)
def test_cases(pieces: list[bytes], lines: list[bytes], rest: bytes) -> None:
    assert split(pieces) == (lines, rest)


def test_a_line_comes_as_soon_as_it_is_whole() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o") == []
    assert splitter.feed(b"\n") == [b"two"]


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    splitter = LineSplitter()
    for _ in range(200_000):
        splitter.feed(b"0123456789")
    assert len(splitter.feed(b"\n")[0]) == 2_000_000
