"""What the gateway needs of a queue of documents, as Protocols: `autobatch.AutoBatch` is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Unpack, overload

from aiosollol.core.arguments import EmbedArguments
from aiosollol.core.embeddings import Embeddings


class Status(Protocol):
    """How far something is."""

    def as_dict(self) -> dict[str, Any]: ...


class Job(Status, Protocol):
    """How far a job is, in documents."""

    @property
    def job_id(self) -> str: ...
    @property
    def model(self) -> str: ...
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
    """A queue of documents, open.

    owner: the owner to whose jobs a call is confined; None for all jobs. It has no default, so that
    a type checker finds a call that forgets it.
    """

    async def submit(
        self,
        docs: Sequence[str],
        model: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        owner: str | None,
        **settings: Unpack[EmbedArguments],
    ) -> str: ...
    @overload
    async def status(self, job: str, *, owner: str | None) -> Job: ...
    @overload
    async def status(self, job: None = None, *, owner: str | None) -> Status: ...
    async def cancel(self, job: str, *, owner: str | None) -> Status: ...
    async def retry(self, job: str, *, owner: str | None) -> int: ...
    def results(self, job: str, *, owner: str | None) -> AsyncIterator[Page]: ...
