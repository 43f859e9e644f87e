"""What a program and its sidecar tell each other through two pipes: length, then a pickle.

Both ends are of one program of one version, so a pickle is as good as anything, and takes float32
as it is.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, BinaryIO

FRAME_DONE, REFUSED, FAILED = "done", "refused", "failed"
"""What became of an order: done, refused by our own code, or failed in Ray."""

_LENGTH = struct.Struct("<Q")
HEADER = _LENGTH.size


def pack(value: Any) -> bytes:
    """One frame."""
    body = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """How many bytes follow the first `HEADER` ones."""
    length: int = _LENGTH.unpack(header)[0]
    return length


def unpack(body: bytes) -> Any:
    """The value of a frame, from what follows its header."""
    return pickle.loads(body)


def read(stream: BinaryIO) -> Any:
    """The next value of a blocking stream. Raises EOFError at its end."""
    return unpack(_read(stream, length_of(_read(stream, HEADER))))


def _read(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
