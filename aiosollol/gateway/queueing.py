"""What the gateway needs of a queue of documents, as Protocols: `autobatch.AutoBatch` is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, overload

from aiosollol.core.embeddings import Embeddings


class Status(Protocol):
    """How far something is."""

    def as_dict(self) -> dict[str, Any]: ...


class Job(Status, Protocol):
    """How far a job is, in documents."""

    @property
    def job_id(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def completed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def is_over(self) -> bool: ...


class Page(Protocol):
    """Some documents of a job that are settled, in order: places, vectors, errors."""

    @property
    def indices(self) -> Sequence[int]: ...
    @property
    def vectors(self) -> Embeddings: ...
    @property
    def errors(self) -> Mapping[int, str]: ...


class Queue(Protocol):
    """A queue of documents, open."""

    async def submit(
        self,
        docs: Sequence[str],
        model: str,
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str: ...
    @overload
    async def status(self, job: str) -> Job: ...
    @overload
    async def status(self, job: None = None) -> Status: ...
    async def cancel(self, job: str) -> Status: ...
    async def retry(self, job: str) -> int: ...
    def results(self, job: str) -> AsyncIterator[Page]: ...
