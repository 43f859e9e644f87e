"""A fake node's models, and their vectors: a pure function of digest and text."""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from aiosollol.core.model_names import shortest_name
from aiosollol.errors import InvalidInput
from aiosollol.testing.requests import Slots
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import ModelCard

numpy: Any
try:  # imported here, so that the first request does not pay for it
    import numpy
except ImportError:
    numpy = None

_MODIFIED_AT = "2026-11-21T08:05:54.07587434Z"


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of a fake node.

    dim: length of its vectors.
    digest: derived from the name by default.
    weights: determine its vectors together with the text; the digest by default. Another value is a
    node that computes other vectors than the rest, with the same digest.
    kind: "embedding" or "chat".
    context_length: tokens.
    gpu: whether ``/api/ps`` reports it in GPU memory.
    size: bytes.
    tools: whether a chat model takes tools.

    Raises InvalidInput for an invalid value.
    """

    name: str
    dim: int = 64
    digest: str = ""
    kind: Literal["embedding", "chat"] = "embedding"
    context_length: int = 8192
    gpu: bool = False
    size: int = 46_223_508
    tools: bool = False
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidInput("a fake model needs a name")
        if self.kind not in ("embedding", "chat"):
            raise InvalidInput(f"kind of {self.name} must be 'embedding' or 'chat'")
        if self.dim < 1 or self.context_length < 1:
            raise InvalidInput(f"dim and context_length of {self.name} must be at least 1")
        object.__setattr__(self, "name", shortest_name(self.name))
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.name.encode()).hexdigest())
        if not self.weights:
            object.__setattr__(self, "weights", self.digest)

    def cut(self, dimensions: int) -> int:
        """The length of its vectors if `dimensions` are requested; 0 means all."""
        return min(dimensions or self.dim, self.dim)

    def card(self) -> ModelCard:
        """The server's description of it."""
        is_chat = self.kind == "chat"
        return ModelCard(
            name=self.name,
            digest=self.digest,
            size=self.size,
            dim=self.dim,
            context_length=self.context_length,
            modified_at=_MODIFIED_AT,
            capabilities=("completion", *(("tools",) if self.tools else ()))
            if is_chat
            else ("embedding",),
            family="llama" if is_chat else "bert",
        )


def fake_tokens(text: str) -> int:
    """The number of tokens of `text` in a fake model: one per four characters, plus two."""
    return -(-len(text) // 4) + 2


def fake_vector(digest: str, text: str, dim: int) -> bytes:
    """The vector of `text`: `dim` float32 in this machine's byte order, of unit length.

    A pure function, the same with and without numpy. The vector for a smaller `dim` is a prefix of
    that for a larger one, scaled to unit length again, as Ollama does for ``dimensions``. Read it
    with ``memoryview(...).cast("f")`` or ``numpy.frombuffer``.
    """
    seed = f"{digest}\0{text}".encode("utf-8", "surrogatepass")
    raw = hashlib.shake_256(seed).digest(dim)
    # Each byte becomes an odd number from -255 to 255: never zero, and sums of squares are exact,
    # so both branches below round the same quotients.
    if numpy is not None:
        odd = numpy.frombuffer(raw, dtype=numpy.uint8).astype(numpy.int64) * 2 - 255
        length = math.sqrt(int(odd @ odd))
        vector: bytes = (odd / length).astype(numpy.float32).tobytes()
        return vector
    odds = [2 * byte - 255 for byte in raw]
    length = math.sqrt(sum(odd * odd for odd in odds))
    return array("f", [odd / length for odd in odds]).tobytes()


# Options that make Ollama reload a model when they change.
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_KEEP_ALIVE = 300.0  # seconds; Ollama's default


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model's load options, and when it is unloaded: ns since 1970, and by the loop's clock."""

    options: tuple[Any, ...]
    until: int
    expires_at: float


class Memory:
    """The models in memory. One is loaded at a time; requests to loaded models do not wait.

    max_loaded: most models in memory; the least recently used is evicted for a new one, as with
    OLLAMA_MAX_LOADED_MODELS.
    loads: models loaded so far, in order.
    """

    def __init__(self, max_loaded: int | None = None) -> None:
        self.max_loaded = max_loaded
        self.loads: list[str] = []
        self._loaded: dict[str, _Loaded] = {}  # the least recently used first
        self._loading = Slots(1)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The name of each loaded model, and the `timestamp` at which it is unloaded."""
        return ((name, server_responses.timestamp(it.until)) for name, it in self._loaded.items())

    async def load(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        seconds: float,
        keep_alive: float | None,
        max_queue: int,
    ) -> float:
        """Load a model unless it is loaded; returns the seconds taken. Raises Refusal (503).

        The load belongs to the first request: if that is cancelled, so is the load, as in Ollama.
        """
        began = anyio.current_time()
        wanted = tuple(options.get(option) for option in _LOAD_OPTIONS)
        if self._is_cold(name, wanted):
            if self._loading.waiting >= max_queue:
                raise Refusal(503, server_responses.BUSY)
            await self._loading.acquire()
            try:
                if self._is_cold(name, wanted):  # an earlier request may have loaded it
                    self.unload(name)
                    self._evict()
                    await anyio.sleep(seconds)
                    self._note(name, wanted, keep_alive)
                    self.loads.append(name)
            finally:
                self._loading.release()
        self._note(name, wanted, keep_alive)
        return anyio.current_time() - began

    def unload(self, name: str) -> None:
        """Unload a model, if it is loaded."""
        self._loaded.pop(name, None)

    def keep(self, name: str, keep_alive: float | None) -> None:
        """Record the end of a request to a model: it stays for `keep_alive` from now on."""
        loaded = self._loaded.get(name)
        if loaded is not None:
            self._note(name, loaded.options, keep_alive)

    def expire(self) -> None:
        """Unload the models that were not used for their `keep_alive`."""
        now = anyio.current_time()
        for name in [name for name, it in self._loaded.items() if it.expires_at <= now]:
            del self._loaded[name]

    def _note(self, name: str, options: tuple[Any, ...], keep_alive: float | None) -> None:
        seconds = _KEEP_ALIVE if keep_alive is None else keep_alive
        until = time.time_ns() + int(min(seconds * 1e9, server_responses.FOR_EVER_NS))
        self._loaded.pop(name, None)
        # With 0 the request itself unloads the model.
        expires_at = anyio.current_time() + seconds if seconds else math.inf
        self._loaded[name] = _Loaded(options, until, expires_at)

    def _evict(self) -> None:
        """Make room for one more model."""
        while self.max_loaded is not None and len(self._loaded) >= self.max_loaded:
            del self._loaded[next(iter(self._loaded))]

    def _is_cold(self, name: str, options: tuple[Any, ...]) -> bool:
        loaded = self._loaded.get(name)
        return loaded is None or loaded.options != options
