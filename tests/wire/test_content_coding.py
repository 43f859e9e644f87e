"""Compressed bodies: however they are cut, as much at a time as is asked for."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.wire.content_coding import BadContent, ContentDecoder

TEXT = b'{"embeddings":[[0.25,0.5]]}' * 200


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


ENCODED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "two gzips": ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
    "padded gzip": ("gzip", gzip.compress(TEXT) + bytes(100)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "deflate without a header": ("deflate", raw_deflate(TEXT)),
}


def decoded(coding: str, pieces: list[bytes], limit: int = 10**9) -> bytes:
    decoder = ContentDecoder(coding)
    content = bytearray()
    for piece in pieces:
        found = decoder.decode(piece, limit)
        assert len(found) <= limit
        content += found
        while decoder.has_more:
            found = decoder.decode(b"", limit)
            assert 0 < len(found) <= limit or not decoder.has_more
            content += found
    assert decoder.is_complete
    return bytes(content)


@pytest.mark.parametrize("limit", [1, 7, 5399, 5400, 5401, 10**9])
@pytest.mark.parametrize("name", ENCODED)
def test_a_body_is_decoded_however_it_is_cut(name: str, limit: int) -> None:
    coding, data = ENCODED[name]
    assert decoded(coding, [data], limit) == TEXT
    assert decoded(coding, [data[at : at + 1] for at in range(len(data))], limit) == TEXT


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 500), st.integers(1, 500), st.booleans())
def test_any_content_comes_back(content: bytes, size: int, limit: int, is_gzip: bool) -> None:
    data = gzip.compress(content) if is_gzip else zlib.compress(content)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert decoded("gzip" if is_gzip else "deflate", pieces, limit) == content


def test_no_more_is_decoded_than_is_asked_for() -> None:
    data = gzip.compress(bytes(50_000_000))
    decoder = ContentDecoder("gzip")
    assert len(decoder.decode(data, 1000)) == 1000
    assert decoder.has_more
    assert not decoder.is_complete
    assert decoder.decode(b"", 0) == b""
    assert decoder.has_more


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", b"{}"),
        ("gzip", b"<html>"),
        ("gzip", zlib.compress(TEXT)),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8)),
        ("gzip", gzip.compress(TEXT) + b"more"),
        ("gzip", gzip.compress(b"") * 100_000),
        ("deflate", zlib.compress(TEXT) + b"more"),
        ("deflate", zlib.compress(TEXT)[:-4] + bytes(4)),
    ],
    ids=range(8),  # gzip has the time in it, and ids must be the same in every process
)
def test_what_is_not_in_its_coding(coding: str, data: bytes) -> None:
    with pytest.raises(BadContent):
        ContentDecoder(coding).decode(data, 10**9)


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_cut_off_is_not_complete(name: str) -> None:
    coding, data = ENCODED[name]
    decoder = ContentDecoder(coding)
    assert decoder.is_complete
    decoder.decode(data[:30], 10**9)
    assert not decoder.is_complete
    assert not decoder.has_more
