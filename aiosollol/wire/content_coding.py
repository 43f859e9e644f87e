"""Content codings (RFC 9110, section 8.4.1): incremental gzip, deflate and zstd."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiosollol.errors import MissingExtra

CODINGS: Mapping[str, str] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
"""Supported values of Content-Encoding -> the coding of a `ContentDecoder`."""

_ZSTD_WINDOW_LOG = 23
_MAX_MEMBERS = 64  # of a gzip stream; each costs a copy of the data after it


class BadContent(ValueError):
    """Content that is not valid in its coding."""


class ContentDecoder:
    """Decodes one body in bounded parts: content may be a thousand times as long as its coding.

    coding: "gzip" or "deflate" (zlib's format, or raw deflate, as some servers send).

    has_more: whether the last call stopped at its limit; call again without data to continue.
    is_complete: whether the compressed data has ended, or has not begun.
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
        """Up to `limit` bytes of content, from `data` and earlier data. Raises BadContent."""
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
            raise BadContent(f"its content does not match its Content-Encoding: {error}") from error
        self._rest = rest
        self.has_more = limit <= 0 and not self.is_complete
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _begin(self, data: bytes) -> bool:
        """Whether `data` is enough to choose the decoder."""
        if not data or (not self._is_gzip and len(data) < 2):
            return False
        self._members += 1
        if self._members > (_MAX_MEMBERS if self._is_gzip else 1):
            raise BadContent("there is data after the end of its compressed content")
        if self._is_gzip:
            bits = zlib.MAX_WBITS + 16
        else:
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
            bits = zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
        self._inflate = zlib.decompressobj(bits)
        return True


class ZstdDecoder:
    """As `ContentDecoder`, for zstd (RFC 8878) with windows of up to 8 MiB, as in Ollama.

    Raises MissingExtra where Python has no zstd: before 3.14 it needs backports.zstd.
    """

    def __init__(self) -> None:
        try:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd
        except ImportError as error:
            raise MissingExtra("the Content-Encoding zstd", "gateway") from error
        self._error: type[Exception] = zstd.ZstdError
        window = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
        self._make = partial(zstd.ZstdDecompressor, options=window)
        self._frame: Any = None
        self._rest = b""
        self.has_more = False

    @property
    def is_complete(self) -> bool:
        return self._frame is None and not self._rest

    def decode(self, data: bytes, limit: int) -> bytes:
        """Up to `limit` bytes of content, of `data` and what was left before. Raises BadContent."""
        rest, self._rest = self._rest + data, b""
        pieces: list[bytes] = []
        try:
            while limit > 0 and (rest or (self._frame is not None and not self._frame.needs_input)):
                if self._frame is None:
                    self._frame = self._make()
                piece = self._frame.decompress(rest, limit)
                pieces.append(piece)
                limit -= len(piece)
                rest = b""  # the frame keeps what it has not used
                if self._frame.eof:
                    rest, self._frame = self._frame.unused_data, None
        except self._error as error:
            raise BadContent(f"its content is not in its encoding: {error}") from error
        self._rest = rest
        frame = self._frame
        self.has_more = limit <= 0 and bool(rest or (frame is not None and not frame.needs_input))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
