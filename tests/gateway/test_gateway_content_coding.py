"""Bodies of requests that are compressed: what is decoded, cut short, too large, or refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from typing import Any

import pytest
from gateway_cluster import cluster

from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.gateway.options import GatewayOptions

pytestmark = pytest.mark.anyio

CHAT = {"model": "tiny-chat", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/api/embed": {"model": "all-minilm", "input": "a"},
    "/api/chat": CHAT,
    "/api/show": {"model": "tiny-chat"},
    "/v1/chat/completions": CHAT,
    "/v1/embeddings": {"model": "all-minilm", "input": "a"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
    "/v1/responses": {"model": "tiny-chat", "input": "a"},
    "/v1/completions": {"model": "tiny-chat", "prompt": "a"},
}
ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress, "x-gzip": gzip.compress}
MOST = 200_000
HAS_ZSTD = importlib.util.find_spec("backports") and importlib.util.find_spec("backports.zstd")


def zstd(content: bytes) -> bytes:
    """One frame of raw blocks (RFC 8878, section 3.1.1)."""
    frame = b"\x28\xb5\x2f\xfd\xa0" + len(content).to_bytes(4, "little")
    for at in range(0, len(content), 100_000):
        block = content[at : at + 100_000]
        last = at + 100_000 >= len(content)
        frame += (len(block) << 3 | last).to_bytes(3, "little") + block
    return frame


async def answers(path: str, body: bytes, coding: str, *, guarded: bool) -> tuple[int, str, Any]:
    """Status, the header Accept-Encoding, and the error's message."""
    app: dict[str, Any] = {}
    if guarded:
        app["middlewares"] = [Guard(limits=Limits(max_body=MOST)).middleware()]
    async with cluster(app=app, options=GatewayOptions(max_body_bytes=MOST)) as gateway:
        answer = await gateway.post(path, body, Content_Encoding=coding)
        error = answer.json.get("error", "") if answer.status >= 400 else ""
        words = error["message"] if isinstance(error, dict) else error
        return answer.status, answer.headers.get("Accept-Encoding", ""), words


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("size", [0, 150_000])
@pytest.mark.parametrize("coding", ENCODERS)
@pytest.mark.parametrize("path", ["/api/embed", "/v1/messages"])
async def test_an_encoded_body_is_its_content(
    path: str, coding: str, size: int, guarded: bool
) -> None:
    body = json.dumps(BODIES[path]).encode() + b" " * size
    data = ENCODERS[coding](body)
    assert (await answers(path, data, coding, guarded=guarded))[0] == 200
    for cut in (1, 4, 9, len(data) - 11):  # the end of gzip, its length, its checksum
        status, _, message = await answers(path, data[:-cut], coding, guarded=guarded)
        assert status == 400
        assert "cut short" in message
    too_large = ENCODERS[coding](body + b" " * MOST)
    status, _, message = await answers(path, too_large, coding, guarded=guarded)
    assert (status, "larger than" in message) == (413, True)


@pytest.mark.skipif(not HAS_ZSTD, reason="needs backports.zstd")
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("path", [path for path in BODIES if path.startswith("/v1/")])
async def test_zstd_where_ollama_accepts_it(path: str, guarded: bool) -> None:
    body = json.dumps(BODIES[path]).encode()
    for data, status in (
        (zstd(body), 200),
        (zstd(body[:9]) + zstd(body[9:]), 200),
        (zstd(body + b" " * 150_000), 200),
        (zstd(body + b" " * 150_000)[:-1], 400),
        (zstd(body)[:-1], 400),
        (zstd(body)[:4], 400),
        (zstd(body + b" " * MOST), 413),
        (body, 400),
    ):
        assert (await answers(path, data, "zstd", guarded=guarded))[0] == status


@pytest.mark.parametrize(
    ("path", "coding", "status"),
    [
        ("/api/chat", "zstd", 415),
        ("/api/show", "zstd", 415),
        ("/v1/messages", "br", 415),
        ("/api/embed", "compress", 415),
        ("/v1/chat/completions", "gzip, gzip", 415),
        ("/api/chat", "gzip, zstd", 415),
        ("/api/embed", "identity", 200),
        ("/api/embed", "utf-8", 200),  # which Ollama ignores
        ("/v1/embeddings", "", 200),
    ],
)
async def test_other_encodings(path: str, coding: str, status: int) -> None:
    for guarded in (True, False):
        body = json.dumps(BODIES[path]).encode()
        found, accepted, message = await answers(path, body, coding, guarded=guarded)
        assert found == status, message
        assert accepted == ("gzip, deflate" if status == 415 else "")


async def test_a_gateway_without_zstd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "backports", None)
    monkeypatch.setitem(__import__("sys").modules, "compression", None)
    path = "/v1/responses"
    status, _, message = await answers(
        path, zstd(json.dumps(BODIES[path]).encode()), "zstd", guarded=False
    )
    assert (status, "the extra 'gateway' on the gateway" in message) == (415, True)
