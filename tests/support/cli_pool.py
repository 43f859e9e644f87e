"""A stub pool, for commands in this process."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.node import ClusterView
from aiosollol.core.report import BatchReport, NodeShare
from aiosollol.errors import SollolError


class StubPool:
    """Embeds a text as [its length, 1]. Tests change class attributes."""

    nodes: Any = None
    options: dict[str, Any]
    batches: list[list[str]]
    in_flight = 0
    most_in_flight = 0
    on_batch: Callable[[int], Any] = staticmethod(lambda number: None)  # may raise, or wait
    bad_texts: frozenset[str] = frozenset()
    context = 10**9
    on_truncate = ""
    is_closed = False
    view = ClusterView({})

    def __init__(self, nodes: Any = None, **options: Any) -> None:
        StubPool.nodes = nodes
        StubPool.options = options

    async def __aenter__(self) -> StubPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        StubPool.is_closed = True

    async def refresh(self) -> ClusterView:
        return self.view

    async def embed_batch(
        self, model: str, texts: Sequence[str], *, on_error: str, on_truncate: str, on_progress: Any
    ) -> Embeddings:
        StubPool.batches.append(list(texts))
        StubPool.on_truncate = on_truncate
        StubPool.in_flight += 1
        StubPool.most_in_flight = max(StubPool.most_in_flight, StubPool.in_flight)
        try:
            waited = self.on_batch(len(self.batches))
            if waited is not None:
                await waited
            await asyncio.sleep(0)
            on_progress(len(texts), len(texts))
        finally:
            StubPool.in_flight -= 1
        errors = {
            i: SollolError("too odd") for i, text in enumerate(texts) if text in self.bad_texts
        }
        numbers = [x for i, text in enumerate(texts) for x in _row(text, i in errors)]
        shares = {"a": NodeShare(len(texts), 1)}
        cut = sum(len(text) > self.context for text in texts)
        report = BatchReport(len(texts), len(texts), 0.5, shares, truncated=cut)
        buffer = struct.pack(f"{len(numbers)}f", *numbers)
        return Embeddings(buffer, 2, errors=errors, report=report)


def _row(text: str, is_bad: bool) -> list[float]:
    return [float("nan")] * 2 if is_bad else [float(len(text)), 1.0]


def use_stub(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> type[StubPool]:
    """Put `StubPool` in place of `OllamaPool` in these modules, as new, until the test ends."""
    monkeypatch.setattr(StubPool, "batches", [], raising=False)
    monkeypatch.setattr(StubPool, "options", {}, raising=False)
    for name in (
        "nodes",
        "in_flight",
        "most_in_flight",
        "on_batch",
        "bad_texts",
        "context",
        "on_truncate",
        "is_closed",
        "view",
    ):
        monkeypatch.setattr(StubPool, name, StubPool.__dict__[name])
    for module in modules:
        monkeypatch.setattr(module, "OllamaPool", StubPool)
    return StubPool
