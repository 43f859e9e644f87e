"""The clients that are compared: ours, and what one would write by hand with aiohttp.

Each makes the same requests and ends with the same: float32 in memory, text in a string.
"""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import aiohttp
import orjson
import pybase64

from aiosollol import OllamaPool
from benchmarks.client.bodies import CHAT_MODEL, MODEL

MESSAGES = [{"role": "user", "content": "Tell me of words."}]
_FLOAT_BYTES = 4


class Client(Protocol):
    """What a contestant can be asked to do. `name` is how tables call it."""

    def __init__(self, urls: Sequence[str], **options: Any) -> None: ...
    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def embed(self, text: str) -> Any:
        """One vector: a sequence of numbers."""
        ...

    async def embed_batch(self, texts: Sequence[str], sizes: Sequence[int]) -> tuple[Any, Any]:
        """Vectors, as a flat buffer or a list of them, and the sizes of the chunks."""
        ...

    async def chat(self, on_first: Any) -> int:
        """The number of characters streamed; `on_first` is called when the first part is there."""
        ...


class Ours:
    """`OllamaPool`. format: "base64", or "json" by asking for what only ``/api/embed`` knows."""

    def __init__(self, urls: Sequence[str], *, format: str = "base64") -> None:
        self._pool = OllamaPool(nodes=urls)
        self._truncate = None if format == "base64" else True

    async def open(self) -> None:
        await self._pool.start()

    async def close(self) -> None:
        await self._pool.aclose()

    async def embed(self, text: str) -> Any:
        if self._truncate is None:
            return await self._pool.embed(MODEL, text)
        return await self._pool.embed(MODEL, text, truncate=True)

    async def embed_batch(self, texts: Sequence[str], sizes: Sequence[int]) -> tuple[Any, Any]:
        vectors = await self._pool.embed_batch(MODEL, texts, truncate=self._truncate)
        assert vectors.report is not None
        return vectors.buffer, [each.items for each in vectors.report.slices]

    async def chat(self, on_first: Any) -> int:
        size = 0
        stream = await self._pool.chat(CHAT_MODEL, MESSAGES, stream=True)
        async for part in stream:
            if not size:
                on_first()
            size += len(part.message.content)
        return size


class Floor:
    """aiohttp and orjson by hand: nothing is retried, counted or checked.

    codec: "pybase64", or "stdlib" with its base64 and json.
    """

    def __init__(
        self, urls: Sequence[str], *, format: str = "base64", codec: str = "pybase64"
    ) -> None:
        self._url = urls[0]
        self._is_base64 = format == "base64"
        self._dumps: Any = orjson.dumps
        self._loads: Any = orjson.loads
        self._decode: Any = lambda text: pybase64.b64decode(text, None, True)
        if codec == "stdlib":
            self._dumps = lambda value: json.dumps(value).encode()
            self._loads = json.loads
            self._decode = base64.b64decode

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "application/json"}
        )

    async def close(self) -> None:
        await self._session.close()

    async def embed(self, text: str) -> Any:
        if self._is_base64:
            request: dict[str, Any] = {"model": MODEL, "input": [text], "encoding_format": "base64"}
            answer = await self._post("/v1/embeddings", request)
            return memoryview(self._decode(answer["data"][0]["embedding"])).cast("f")
        request = {"model": MODEL, "input": [text], "truncate": True}
        answer = await self._post("/api/embed", request)
        return memoryview(array("f", answer["embeddings"][0]))

    async def embed_batch(self, texts: Sequence[str], sizes: Sequence[int]) -> tuple[Any, Any]:
        """Two requests under way at a time, as ours has on one node; vectors into one buffer."""
        rows: memoryview | None = None
        ends = list(accumulate(sizes))
        chunks = iter([texts[end - size : end] for end, size in zip(ends, sizes, strict=True)])
        starts = iter([end - size for end, size in zip(ends, sizes, strict=True)])

        async def work() -> None:
            nonlocal rows
            request: dict[str, Any]
            for chunk, start in zip(chunks, starts, strict=False):
                if self._is_base64:
                    request = {"model": MODEL, "input": chunk, "encoding_format": "base64"}
                    answer = await self._post("/v1/embeddings", request)
                    vectors = [self._decode(entry["embedding"]) for entry in answer["data"]]
                else:
                    request = {"model": MODEL, "input": chunk, "truncate": True}
                    answer = await self._post("/api/embed", request)
                    vectors = [
                        memoryview(array("f", row)).cast("B") for row in answer["embeddings"]
                    ]
                size = len(vectors[0])
                if rows is None:
                    rows = memoryview(bytearray(len(texts) * size))
                at = start * size
                for vector in vectors:
                    rows[at : at + size] = vector
                    at += size

        await asyncio.gather(work(), work())
        assert rows is not None
        return rows.cast("f"), sizes

    async def chat(self, on_first: Any) -> int:
        size = 0
        body = self._dumps({"model": CHAT_MODEL, "messages": MESSAGES, "stream": True})
        async with self._session.post(self._url + "/api/chat", data=body) as response:
            async for line in response.content:
                if not size:
                    on_first()
                part = self._loads(line)
                size += len(part["message"]["content"])
                if part["done"]:
                    break
        return size

    async def _post(self, path: str, request: dict[str, Any]) -> Any:
        async with self._session.post(self._url + path, data=self._dumps(request)) as response:
            return self._loads(await response.read())
