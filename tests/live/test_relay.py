"""What is passed on as bytes: which answers are sound, and where streams end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aiosollol.errors import ConnectionLost, NodeError, ProtocolError, RunnerFailed, StreamCutOff
from aiosollol.live.relay import (
    RelayCall,
    Relayed,
    RelayStream,
    read_talk,
    read_vector,
    read_vectors_of_one,
)

pytestmark = pytest.mark.anyio

PART = b'{"message":{"content":"x"},"done":false}\n'
LAST = b'{"message":{"content":""},"done":true}\n'
ERROR = b'{"error":"llama runner process no longer running: 2 "}\n'


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


class Response:
    """A node's answer, in `pieces`; an error among them is raised."""

    def __init__(self, pieces: Sequence[bytes | Exception]) -> None:
        self.pieces = list(pieces)
        self.is_closed = False

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_closed = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece


class Opened:
    """A relay of `pieces`, and how its account was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.response = Response(pieces)
        self.ended: list[BaseException | None] = []
        self.stream = RelayStream("node", self.response, lambda _, error: self.ended.append(error))

    async def open(self) -> RelayStream:
        await self.stream.open()
        return self.stream


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40, 41, 42, 50, 10_000])
async def test_lines_are_passed_on_whole(size: int) -> None:
    data = PART * 5 + LAST
    opened = Opened(*cut(data, size))
    given = [piece async for piece in await opened.open()]
    assert b"".join(given) == data
    assert all(piece.endswith(b"\n") for piece in given)
    assert opened.ended == [None]
    assert opened.response.is_closed


async def test_a_last_line_need_not_end() -> None:
    opened = Opened(PART, LAST[:-1])
    assert [piece async for piece in await opened.open()] == [PART, LAST]
    assert opened.ended == [None]


async def test_what_says_done_inside_is_not_the_end() -> None:
    call = b'{"message":{"tool_calls":[{"function":{"arguments":{"done":true}}}]},"done":false}\n'
    opened = Opened(call, PART, LAST)
    assert [piece async for piece in await opened.open()] == [call, PART, LAST]
    said = b'{"message":{"content":"\\"done\\":true"},"done":false}\n'
    cut_off = await Opened(said).open()
    with pytest.raises(StreamCutOff):
        _ = [piece async for piece in cut_off]


@pytest.mark.parametrize(
    ("pieces", "given"),
    [
        ([PART, PART], 2),
        ([PART, PART + PART[:10]], 2),
        ([PART, ERROR], 1),
        ([PART + PART + ERROR], 1),
        ([PART, ConnectionLost("node", "the connection broke")], 1),
        ([PART, b"<html>\n"], 2),
    ],
)
async def test_what_breaks_off_is_an_error_and_a_failure(
    pieces: list[bytes | Exception], given: int
) -> None:
    opened = Opened(*pieces)
    stream = await opened.open()
    taken: list[bytes] = []
    with pytest.raises(StreamCutOff) as caught:
        async for piece in stream:
            taken.append(piece)  # noqa: PERF401
    assert len(taken) == given
    assert b"error" not in b"".join(taken)
    assert isinstance(opened.ended[0], NodeError)
    assert len(opened.ended) == 1
    assert opened.response.is_closed
    if ERROR in b"".join(piece for piece in pieces if isinstance(piece, bytes)):
        assert isinstance(caught.value.__cause__, RunnerFailed)
    with pytest.raises(StreamCutOff):  # whoever reads on must not take it for the end
        await anext(stream)


async def test_after_a_read_that_was_broken_off_nobody_takes_it_for_the_end() -> None:
    opened = Opened(PART, ValueError("not of the node's making"), PART, LAST)
    stream = await opened.open()
    assert await anext(stream) == PART
    with pytest.raises(ValueError, match="making"):
        await anext(stream)
    with pytest.raises(StreamCutOff, match="after 1 parts"):
        await anext(stream)


async def test_one_that_is_left_was_given_up() -> None:
    opened = Opened(PART, PART, LAST)
    stream = await opened.open()
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    assert [type(error) for error in opened.ended] == [GeneratorExit]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_one_that_is_left_after_its_last_line_was_answered() -> None:
    opened = Opened(PART, LAST)
    stream = await opened.open()
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert opened.ended == [None]


async def test_a_line_without_end_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aiosollol.live.relay._MAX_LINE", 1000)
    stream = await Opened(PART, *[b"x" * 100] * 20).open()
    await anext(stream)
    with pytest.raises(StreamCutOff, match="a line of more than 1000 bytes"):
        await anext(stream)


@pytest.mark.parametrize("body", [LAST, LAST[:-1], b'{"done": true}', b'{"response": "odd"}'])
def test_sound_answers(body: bytes) -> None:
    assert read_talk("node", body) == Relayed("node", body)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", LAST[:-3], b'{"done":true', b"null"])
@pytest.mark.parametrize("read", [read_talk, read_vector, read_vectors_of_one])
def test_unsound_answers(read: Any, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read("node", body)


@pytest.mark.parametrize("read", [read_talk, read_vector, read_vectors_of_one])
def test_an_error_under_status_200(read: Any) -> None:
    with pytest.raises(RunnerFailed, match="no longer running"):
        read("node", ERROR)
    with pytest.raises(RunnerFailed):
        read("node", b'{"error": 7}')


@pytest.mark.parametrize(
    "body", [b'{"embeddings":[]}', b'{"embeddings":[[]]}', b'{"embeddings":[[1],[2]]}']
)
def test_one_text_has_one_vector(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not the vector of one text"):
        read_vectors_of_one("node", body)


def test_brackets_in_a_name_are_no_vectors() -> None:
    body = b'{"model":"m[1]","embeddings":[[0.1,0.2]]}'
    assert read_vectors_of_one("node", body).body == body


def test_a_load_is_asked_for_in_the_same_way() -> None:
    call = RelayCall("/api/embed", "embed", "m", b"", read_vector, 1.0)
    assert call.load_request()[0] == "/api/embed"
    assert call.request().kind == "embed"
    talk = RelayCall("/api/chat", "chat", "m", b"", read_talk, 1.0)
    assert talk.load_request() == ("/api/generate", b'{"model":"m","stream":false}')
