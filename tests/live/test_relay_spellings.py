"""A stream ends where its JSON says, however a node spells it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest
from compatible_questions import PATHS, STAMP, question
from hypothesis import given, settings
from hypothesis import strategies as st
from spellings import BOM, ENDS, KEYS, LAST, VALUES, WRITERS, compact, every_spelling, part, written
from test_relay import Opened, Response, cut

from aiosollol.errors import RunnerFailed, StreamCutOff
from aiosollol.live.relay import _are_ordinary
from aiosollol.live.streaming import ReplyStream
from aiosollol.wire.ollama.chat import load_chat

ANSWERS = {
    "plain": [part("one"), part(" two"), part(" \N{GRINNING FACE}\n<b>"), LAST],
    "at once": [LAST],
    "what looks like the end": [
        part('{"done":true}'),
        part(',"done":true}\n{"done": true}'),
        part("", tool_calls=[{"function": {"name": "f", "arguments": {"done": True}}}]),
        {**part("x"), 'a"done': True, "then": {"done": True}},
        LAST,
    ],
    "what looks like an error": [
        part('{"error": "no"}'),
        part("", tool_calls=[{"function": {"name": "error", "arguments": {"error": "no"}}}]),
        {**part("error"), 'an "error"': "no"},
        LAST,
    ],
    "what looks like no end": [part(',"done":false}'), {"then": {"done": False}, **LAST}],
}


def objects(pieces: Iterable[bytes]) -> list[Any]:
    return [json.loads(line) for line in b"".join(pieces).splitlines() if line.strip()]


every_end = pytest.mark.parametrize("end", ENDS)
SIZES = [1, 2, 3, 7, 64, 100_000]


@pytest.mark.anyio
@every_spelling
@every_end
async def test_a_relayed_stream_ends_where_its_json_says(write: str, end: str) -> None:
    for answer, size in product(ANSWERS.values(), SIZES):
        body = written(answer, write, end)
        opened = Opened(*cut(body, size))
        pieces = [piece async for piece in await opened.open()]
        assert objects(pieces) == answer
        assert opened.ended == [None]
        assert opened.stream.parts == len(answer)
        assert opened.stream.tokens == 7
        # As it was written, but for what clients may stumble over.
        assert b"".join(pieces).split() == body.removeprefix(BOM.encode()).split()


@pytest.mark.anyio
@every_spelling
@every_end
async def test_a_stream_of_replies_ends_where_its_json_says(write: str, end: str) -> None:
    answer = ANSWERS["plain"]
    ended: list[BaseException | None] = []
    for size in SIZES:
        response = Response(cut(written(answer, write, end), size))
        stream = ReplyStream("n", response, load_chat, lambda _, error: ended.append(error))
        await stream.open()
        assert [dict(reply) async for reply in stream] == answer
        assert stream.tokens == 7
    assert ended == [None] * len(SIZES)


@pytest.mark.parametrize("path", PATHS)
@every_spelling
@every_end
def test_events_are_those_of_the_same_json(path: str, write: str, end: str) -> None:
    def told(pieces: Sequence[bytes]) -> bytes:
        events = question(path, stream=True).events(STAMP)
        return b"".join(map(events.feed, pieces)) + events.finish()

    for answer in ANSWERS.values():
        expected = told([written(answer, "compact", "lines")])
        assert b"error_" not in expected
        body = written(answer, write, end)
        assert all(told(cut(body, size)) == expected for size in (1, 64, 100_000))


ERRORS = {
    "an error": {"error": "out of memory"},
    "an object": {"error": {"message": "out of memory"}},
    "done": {"error": "out of memory", "done": True},
    "not done": {"error": "out of memory", "model": "m", "done": False},
    "among others": {**part("x"), "error": "out of memory"},
}


@pytest.mark.anyio
@every_spelling
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_an_error_is_found_anywhere_in_a_stream(write: str, error: dict[str, Any]) -> None:
    before = [part("one"), part("two")]
    for after, size in product(([], [part("late")], [LAST]), SIZES):
        body = written([*before, error, *after], write, "lines")
        opened = Opened(*cut(body, size))
        stream = await opened.open()
        taken: list[bytes] = []
        with pytest.raises(StreamCutOff, match="after 2 parts") as caught:
            async for piece in stream:
                taken.append(piece)  # noqa: PERF401
        assert objects(taken) == before
        assert isinstance(caught.value.__cause__, RunnerFailed)
        assert "out of memory" in str(caught.value)
        assert isinstance(opened.ended[0], RunnerFailed)


@pytest.mark.anyio
@every_spelling
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
async def test_an_error_in_place_of_a_stream(write: str, error: dict[str, Any]) -> None:
    opened = Opened(*cut(written([error, LAST], write, "lines"), 50))
    with pytest.raises(RunnerFailed, match="out of memory"):
        await opened.open()


@pytest.mark.anyio
@every_spelling
async def test_what_follows_the_last_line_is_dropped(write: str) -> None:
    answer = [part("one"), LAST]
    body = written([*answer, part("late"), {"error": "late"}], write, "lines")
    for size in SIZES:
        opened = Opened(*cut(body, size))
        assert objects([piece async for piece in await opened.open()]) == answer
        assert opened.ended == [None]


@pytest.mark.anyio
@every_spelling
async def test_without_a_last_line_a_stream_was_cut_off(write: str) -> None:
    for answer in ANSWERS.values():
        for parts, rest in ((answer[:-1], ""), (answer[:-1], compact(LAST)[:-1])):
            body = written([part("first"), *parts], write, "lines") + rest.encode()
            for size in SIZES:
                stream = await Opened(*cut(body, size)).open()
                with pytest.raises(StreamCutOff, match=f"ended after {1 + len(parts)} parts"):
                    _ = [piece async for piece in stream]


@pytest.mark.anyio
async def test_several_values_on_one_line_are_not_read() -> None:
    body = compact(part("one")) + "\n" + compact(part("two")) + compact(LAST) + "\n"
    stream = await Opened(body.encode()).open()
    with pytest.raises(StreamCutOff):
        _ = [piece async for piece in stream]


OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4).flatmap(
    lambda fields: st.booleans().map(lambda done: {**fields, "done": done})
)


@settings(deadline=None, max_examples=200)
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.sampled_from(sorted(WRITERS)))
def test_no_last_line_and_no_error_is_taken_for_an_ordinary_one(
    answer: list[dict[str, Any]], write: str
) -> None:
    lines = written(answer, write, "lines")
    if _are_ordinary(lines, len(answer)):
        assert all(each["done"] is False and "error" not in each for each in answer)


def test_lines_as_ollama_writes_them_are_ordinary() -> None:
    lines = [part("one"), part('"true", it said\n'), part("<b>")]
    assert _are_ordinary(written(lines[:1], "compact", "lines"), 1)
    assert _are_ordinary(written(lines, "compact", "lines"), 3)
    assert not _are_ordinary(written([*lines, LAST], "compact", "lines"), 4)
    assert not _are_ordinary(written([LAST, *lines], "compact", "lines"), 4)
