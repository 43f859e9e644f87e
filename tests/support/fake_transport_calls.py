"""Calls of a `FakeTransport`: embeddings and the bodies of chats."""

from __future__ import annotations

from typing import Any

import orjson

from aiosollol.testing import FakeTransport


def embed_body(texts: list[str], model: str = "nomic-embed-text", **options: Any) -> bytes:
    return orjson.dumps({"model": model, "input": texts, **options})


async def embed(node: FakeTransport, *texts: str, timeout: float = 1000.0, **options: Any) -> bytes:
    body = embed_body(list(texts), **options)
    return await node.request("POST", "/api/embed", body, timeout=timeout)


def chat_body(text: str, **options: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return orjson.dumps({"model": "llama3.2", "messages": messages, **options})
