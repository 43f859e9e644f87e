"""No body that a client sends holds the event loop for more than a moment.

It may stand still for 100 ms of CPU, or a third of the whole request on a machine that is slow.
"""

from __future__ import annotations

import asyncio
import io

import orjson
import pytest
from gateway_cluster import cluster
from loop_stalls import watched_loop

pytestmark = pytest.mark.anyio

KEYS = b",".join(b'"k%d":%d' % (number, number) for number in range(1_200_000))
NUMBERS = b"0," * (2 << 20)
MESSAGES = b",".join([b'{"role":"user","content":"x"}'] * 120_000)
TEXTS = b",".join(b'"%d"' % number for number in range(90_000))
CASES = {
    "tiny keys": ("/api/chat", b'{"model":"nowhere","options":{%b}}' % KEYS),
    "open brackets": ("/api/embed", b"[" * (4 << 20)),
    "a list that is broken at its end": ("/api/embed", b'{"a":[%b}' % NUMBERS),
    "a lone surrogate": ("/api/embed", b'{"b":"\\ud800","a":[%b0]}' % NUMBERS),
    "digits": ("/api/embed", b'{"model":"nowhere","input":"x","dimensions":%b}' % (b"1" * 400_000)),
    "a duration": (
        "/api/embed",
        b'{"model":"nowhere","input":"x","keep_alive":"%b"}' % (b"1" * 99),
    ),
    "messages": ("/api/chat", b'{"model":"nowhere","messages":[%b]}' % MESSAGES),
    "messages of OpenAI's form": (
        "/v1/chat/completions",
        b'{"model":"nowhere","messages":[%b]}' % MESSAGES,
    ),
    "messages of Anthropic's form": (
        "/v1/messages",
        b'{"model":"nowhere","max_tokens":9,"messages":[%b]}' % MESSAGES,
    ),
    "items of a response": ("/v1/responses", b'{"model":"nowhere","input":[%b]}' % MESSAGES),
    "texts": ("/api/embed", b'{"model":"nowhere","input":[%b]}' % TEXTS),
    "texts of OpenAI's form": ("/v1/embeddings", b'{"model":"nowhere","input":[%b]}' % TEXTS),
    "an image": (
        "/api/chat",
        b'{"model":"nowhere","messages":[{"role":"user","content":"x","images":["%b"]}]}'
        % (b"A" * (8 << 20)),
    ),
}


@pytest.mark.parametrize(("path", "body"), CASES.values(), ids=CASES)
async def test_a_body_does_not_hold_the_loop(path: str, body: bytes) -> None:
    async with cluster() as gateway:
        url = gateway.url + path
        await gateway.get("/api/version")  # what is loaded at the first request
        data = io.BytesIO(body)  # which is sent in pieces
        async with watched_loop() as stalls, gateway.session.post(url, data=data) as answer:
            await answer.read()
        assert answer.status in (400, 404, 413)
        assert stalls.longest < max(0.1, stalls.total / 3)


@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
async def test_what_holds_the_loop_is_found(where: str) -> None:
    zeros = b"[%b0]" % (b"0," * 3_000_000)
    async with watched_loop() as stalls:
        if where == "in a thread":
            await asyncio.to_thread(orjson.loads, zeros)
        else:
            orjson.loads(zeros)
    assert stalls.longest > stalls.total / 2
