"""The messages between a program and its Ray workers. All can be pickled."""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from aiosollol.engines.remote_pool import NodeEntry

DONE, LOST = "done", "lost"
"""Outcome of a partition: there is a result, or the worker died."""


class Contract(NamedTuple):
    """The arguments of a worker. settings: the client's. group, weight: the share it uses."""

    settings: dict[str, Any]
    group: str
    weight: float
    nodes: tuple[NodeEntry, ...]


class Greeting(NamedTuple):
    """The state of a worker after its start. down: the error of each node it cannot reach."""

    name: str
    version: str
    up: tuple[str, ...]
    down: dict[str, str]


FRAME_DONE, REFUSED, FAILED = "done", "refused", "failed"
"""Outcome of an order: done, refused by our code, or failed in Ray."""

_LENGTH = struct.Struct("<Q")
HEADER = _LENGTH.size


def pack(value: Any) -> bytes:
    """`value` as a frame."""
    body = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Number of bytes after a header of `HEADER` bytes."""
    length: int = _LENGTH.unpack(header)[0]
    return length


def unpack(body: bytes) -> Any:
    """The value of a frame, from the bytes after its header."""
    return pickle.loads(body)


def read_all(stream: BinaryIO) -> Iterator[Any]:
    """The values of a blocking stream until its end."""
    with contextlib.suppress(EOFError):
        while True:
            yield read(stream)


def read(stream: BinaryIO) -> Any:
    """The next value of a blocking stream. Raises EOFError at its end."""
    return unpack(_read(stream, length_of(_read(stream, HEADER))))


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
