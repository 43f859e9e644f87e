"""Content codings of a response (RFC 9110, section 8.4.1): gzip and deflate, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

CODINGS: Mapping[str, str] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
"""What Content-Encoding may say -> the coding of a `ContentDecoder`."""

_MAX_MEMBERS = 64  # of a gzip file; each costs a copy of what follows it


class BadContent(ValueError):
    """Content that is not in its coding."""


class ContentDecoder:
    """The content of one body, a bounded part at a time: it may be a thousand times as long.

    coding: "gzip" or "deflate": zlib's format, or the same without a header, as some servers send.

    has_more: whether the last call stopped at its limit, so that another one without data goes on.
    is_complete: whether the compressed data has come to its end, or has not begun.
    """

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding == "gzip"
        self._inflate: Any = None  # zlib has no public name for the type
        self._rest = b""
        self._members = 0
        self.has_more = False

    @property
    def is_complete(self) -> bool:
        return self._inflate is None and not self._rest

    def decode(self, data: bytes, limit: int) -> bytes:
        """Up to `limit` bytes of content, of `data` and what was left before. Raises BadContent."""
        rest = self._rest + data
        self._rest = b""
        pieces: list[bytes] = []
        try:
            while limit > 0:
                if self._inflate is None:
                    if self._is_gzip and self._members:
                        rest = rest.lstrip(b"\0")  # padding
                    if not self._begin(rest):
                        break
                inflate = self._inflate
                piece = inflate.decompress(rest, limit)
                pieces.append(piece)
                limit -= len(piece)
                if inflate.eof:
                    self._inflate = None
                    rest = inflate.unused_data
                else:
                    rest = inflate.unconsumed_tail
                    if not rest and limit:
                        break
        except zlib.error as error:
            raise BadContent(f"its content is not in its encoding: {error}") from error
        self._rest = rest
        self.has_more = limit <= 0 and not self.is_complete
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _begin(self, data: bytes) -> bool:
        """Whether `data` is enough to know how to decode it."""
        if not data or (not self._is_gzip and len(data) < 2):
            return False
        self._members += 1
        if self._members > (_MAX_MEMBERS if self._is_gzip else 1):
            raise BadContent("its content goes on after its end")
        if self._is_gzip:
            bits = zlib.MAX_WBITS + 16
        else:
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
            bits = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
        self._inflate = zlib.decompressobj(bits)
        return True
