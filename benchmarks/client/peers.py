"""Other clients of Ollama, each as its own documentation uses it. Imported only when asked for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.client.bodies import MODEL


class _Peer:
    def __init__(self, urls: Sequence[str], **options: Any) -> None:
        self._url = urls[0]
        self._urls = urls

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def embed(self, text: str) -> Any:
        raise NotImplementedError

    async def embed_batch(self, texts: Sequence[str], sizes: Sequence[int]) -> tuple[Any, Any]:
        """One by one."""
        return [await self.embed(text) for text in texts], sizes

    async def chat(self, on_first: Any) -> int:
        raise NotImplementedError


class Ollama(_Peer):
    """The official client."""

    async def open(self) -> None:
        self._client = import_module("ollama").AsyncClient(host=self._url)

    async def embed(self, text: str) -> Any:
        return (await self._client.embed(MODEL, text)).embeddings[0]


class OpenAI(_Peer):
    """`AsyncOpenAI`, which asks for base64 by itself."""

    async def open(self) -> None:
        openai = import_module("openai")
        self._client = openai.AsyncOpenAI(base_url=self._url + "/v1", api_key="none", max_retries=0)

    async def embed(self, text: str) -> Any:
        return (await self._client.embeddings.create(model=MODEL, input=text)).data[0].embedding


class Httpx(_Peer):
    """httpx and orjson by hand."""

    async def open(self) -> None:
        httpx = import_module("httpx")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=self._url, limits=limits, timeout=60)

    async def close(self) -> None:
        await self._client.aclose()

    async def embed(self, text: str) -> Any:
        body = orjson.dumps({"model": MODEL, "input": [text]})
        answer = await self._client.post("/api/embed", content=body)
        return orjson.loads(answer.content)["embeddings"][0]


class LiteLLM(_Peer):
    """LiteLLM's Router over the nodes."""

    async def open(self) -> None:
        _check_isolated("LiteLLM")
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices
        litellm: Any = import_module("litellm")
        litellm.telemetry = False
        self._router = litellm.Router(
            model_list=[
                {
                    "model_name": MODEL,
                    "litellm_params": {"model": f"ollama/{MODEL}", "api_base": url},
                }
                for url in self._urls
            ]
        )

    async def embed(self, text: str) -> Any:
        answer = await self._router.aembedding(model=MODEL, input=[text])
        return answer.data[0]["embedding"]


class Sollol(_Peer):
    """sollol 0.9.66 in lightweight mode. It is synchronous, so its calls run in threads.

    It looks for nodes on the network, so it runs only where there is none: see `isolation`.
    """

    async def open(self) -> None:
        _check_isolated("sollol")
        OllamaPool = import_module("sollol").OllamaPool
        nodes = [
            {"host": urlsplit(url).hostname, "port": str(urlsplit(url).port)} for url in self._urls
        ]
        self._threads = ThreadPoolExecutor(256)
        self._pool = await asyncio.to_thread(
            OllamaPool,
            nodes=nodes,
            enable_ray=False,
            enable_dask=False,
            register_with_dashboard=False,
            discover_all_nodes=False,
            enable_cache=False,
        )

    async def close(self) -> None:
        self._pool.stop()

    async def embed(self, text: str) -> Any:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._threads, self._pool.embed, MODEL, text)
        return answer["embeddings"][0]

    async def embed_batch(self, texts: Sequence[str], sizes: Sequence[int]) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(
            self._threads, self._pool.embed_batch, MODEL, list(texts)
        )
        return [answer["embeddings"][0] for answer in answers], sizes


def _check_isolated(name: str) -> None:
    if not is_isolated():
        raise ImportError(
            f"{name} uses the network on its own, so it runs only where there is none"
        )


def is_isolated() -> bool:
    """Whether this machine, as this process sees it, has no network but loopback."""
    return all(name == "lo" for _, name in socket.if_nameindex())
