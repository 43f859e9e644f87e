"""`BatchJobs`: the endpoints of the document queue.

A job's results are sent in the format that the client accepts: JSON, NDJSON or raw float32.
"""

from __future__ import annotations

import logging
import sys
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from aiosollol.errors import InvalidInput, StorageError
from aiosollol.gateway.bodies import (
    REQUEST_ID,
    STATE,
    begin,
    parse,
    whole,
)
from aiosollol.gateway.middleware.error_responses import json_object
from aiosollol.gateway.middleware.guard import check_model, owner_of, sees_only
from aiosollol.gateway.options import GatewayOptions
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal

if TYPE_CHECKING:
    from aiosollol.autobatch import JobStatus, QueueStatus, ResultPage
    from aiosollol.pool.facade import OllamaPool

log = logging.getLogger("aiosollol")

JSON, NDJSON, BINARY = (
    server_responses.API_JSON,
    server_responses.NDJSON,
    "application/octet-stream",
)

_SETTINGS = ("dimensions", "truncate", "options", "keep_alive", "metadata")
_JOB = "/api/embed/batch/{id}"


class ConfinedQueue(Protocol):
    """`AutoBatch` with `owner` required, so that a type checker finds a call without it.

    owner: the owner whose jobs a call may use; None for all jobs.
    """

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
        owner: str | None,
    ) -> str: ...
    @overload
    async def status(self, job: str, *, owner: str | None) -> JobStatus: ...
    @overload
    async def status(self, job: None = None, *, owner: str | None) -> QueueStatus: ...
    async def cancel(self, job: str, *, owner: str | None) -> JobStatus: ...
    async def retry(self, job: str, *, owner: str | None) -> int: ...
    def results(self, job: str, *, owner: str | None) -> AsyncIterator[ResultPage]: ...


class BatchJobs:
    """The endpoints of queued documents. autobatch: None answers 501 to every request."""

    def __init__(
        self, pool: OllamaPool, autobatch: ConfinedQueue | None, options: GatewayOptions
    ) -> None:
        self._pool = pool
        self._autobatch = autobatch
        self._model = options.batch_model

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/embed/batch", _logged(self.submit)),
            web.get("/api/batch-status", _logged(self.status)),
            web.get(_JOB, _logged(self.results)),
            web.delete(_JOB, _logged(self.cancel)),
            web.post(f"{_JOB}/retry", _logged(self.retry)),
        ]

    async def submit(self, request: web.Request) -> web.StreamResponse:
        queue = self._queue()
        fields = await parse(request, json_object)
        docs, model = fields.get("docs"), fields.get("model") or self._model
        if not isinstance(docs, list):
            raise InvalidInput('"docs" must be a list of texts')
        if not isinstance(model, str):
            raise InvalidInput('"model" must be the name of an embedding model')
        request[STATE].model = model
        check_model(request, model)  # the guard does not know the default model
        settings = {name: fields[name] for name in _SETTINGS if fields.get(name) is not None}
        job = await queue.submit(docs, model, owner=owner_of(request), **settings)
        answer = {
            "job_id": job,
            "status": "pending",
            "count": len(docs),
            "total_items": len(docs),
            "message": f"queued {len(docs)} documents for batch embedding",
            "status_url": f"/api/batch-status?job={job}",
            "results_url": f"/api/embed/batch/{job}",
        }
        return whole(server_responses.json_answer(answer, status=202))

    async def status(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.query.get("job"), sees_only(request)
        if job is not None:
            return whole(
                server_responses.json_answer((await queue.status(job, owner=owner)).as_dict())
            )
        # With the address of the engine's dashboard.
        engine = {"dask": self._pool.get_stats()["dask"]}
        return whole(
            server_responses.json_answer((await queue.status(owner=owner)).as_dict() | engine)
        )

    async def results(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.match_info["id"], sees_only(request)
        status = await queue.status(job, owner=owner)
        check_model(request, status.model)
        return await send_results(request, queue, status, owner)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        status = await self._queue().cancel(request.match_info["id"], owner=sees_only(request))
        return whole(server_responses.json_answer(status.as_dict()))

    async def retry(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.match_info["id"], sees_only(request)
        check_model(request, (await queue.status(job, owner=owner)).model)
        count = await queue.retry(job, owner=owner)
        status = (await queue.status(job, owner=owner)).as_dict()
        return whole(server_responses.json_answer({**status, "retried": count}))

    def _queue(self) -> ConfinedQueue:
        if self._autobatch is None:
            raise Refusal(501, "this gateway has no document queue: start it with --autobatch")
        return self._autobatch


def _logged(handler: Handler) -> Handler:
    """`handler`, with errors of the queue's file logged: clients don't see its name."""

    async def logged(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except StorageError as error:
            log.warning("document queue: %s", error)
            raise

    return logged


# ---- results


async def send_results(
    request: web.Request, queue: ConfinedQueue, status: JobStatus, owner: str | None
) -> web.StreamResponse:
    """Send the finished documents of a job, page by page, in bounded memory.

    JSON: the job's status, the vectors in order (null for missing ones) and the errors.
    NDJSON: a line for each finished document.
    Raw float32, little-endian, row after row: only for a finished job; rows without a vector are
    NaN.
    """
    pages = aiter(queue.results(status.job_id, owner=owner))
    first = await anext(pages, None)  # if this fails, the status can still be set
    kind = accepted(request.headers.get("Accept", ""))
    headers = {"Content-Type": kind, REQUEST_ID: request[STATE].id}
    if kind == BINARY:
        if not status.is_over:
            done = status.completed + status.failed
            raise Refusal(
                409, f"the job has not ended: {done} of {status.total} documents are done"
            )
        first, pages = await _with_vectors(first, pages)
        dim = 0 if first is None else first.vectors.dim
        headers |= {"X-Sollol-Dim": str(dim), "X-Sollol-Items": str(status.total)}
        parts = _binary(first, pages, dim, status.total)
    else:
        parts = (_lines if kind == NDJSON else _json)(first, pages, status)
    response = await begin(request, headers)
    async for part in parts:
        await response.write(part)
    await response.write_eof()
    return response


def accepted(accept: str) -> str:
    """The content type of the results for an Accept header; JSON by default."""
    wanted = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    for kind in wanted:
        if kind in (NDJSON, BINARY):
            return kind
        if kind in ("application/json", "*/*"):
            break
    return JSON


async def _with_vectors(
    page: ResultPage | None, pages: AsyncIterator[ResultPage]
) -> tuple[ResultPage | None, AsyncIterator[ResultPage]]:
    """Skip to the first page with vectors: a header contains their length."""
    while page is not None and not page.indices:
        page = await anext(pages, None)
    return page, pages


async def _all(
    first: ResultPage | None, pages: AsyncIterator[ResultPage]
) -> AsyncIterator[ResultPage]:
    if first is not None:
        yield first
        async for page in pages:
            yield page


def _vectors(page: ResultPage) -> list[tuple[int, bytes]]:
    """The vectors of a page as JSON, each with its index in the job."""
    if not page.indices:
        return []
    vectors = server_responses.json_vectors(page.vectors.buffer.cast("B"), page.vectors.dim)
    return list(zip(page.indices, vectors, strict=True))


async def _json(
    first: ResultPage | None, pages: AsyncIterator[ResultPage], status: JobStatus
) -> AsyncIterator[bytes]:
    errors: dict[str, str] = {}
    yield orjson.dumps(status.as_dict())[:-1] + b',"embeddings":['
    at = 0
    async for page in _all(first, pages):
        parts = []
        for index, vector in _vectors(page):
            parts += [b"null"] * (index - at)
            parts.append(vector)
            at = index + 1
        errors |= {str(index): error for index, error in page.errors.items()}
        if parts:
            yield (b"" if at == len(parts) else b",") + b",".join(parts)
    rest = [b"null"] * (status.total - at)
    if rest:
        yield (b"," if at else b"") + b",".join(rest)
    yield b'],"errors":' + orjson.dumps(errors) + b"}"


async def _lines(
    first: ResultPage | None, pages: AsyncIterator[ResultPage], status: JobStatus
) -> AsyncIterator[bytes]:
    async for page in _all(first, pages):
        lines = {
            index: b'{"index":%d,"embedding":%b}\n' % (index, vector)
            for index, vector in _vectors(page)
        }
        for index, error in page.errors.items():
            lines[index] = server_responses.line({"index": index, "error": error})
        yield b"".join(lines[index] for index in sorted(lines))


async def _binary(
    first: ResultPage | None, pages: AsyncIterator[ResultPage], dim: int, total: int
) -> AsyncIterator[bytes]:
    missing = array("f", [float("nan")] * dim)
    at = 0
    async for page in _all(first, pages):
        rows = array("f")
        for index, vector in zip(page.indices, page.vectors, strict=True):
            rows.extend(missing * (index - at))
            rows.frombytes(vector.cast("B"))
            at = index + 1
        yield _little_endian(rows)
    yield _little_endian(missing * (total - at))


def _little_endian(rows: array[float]) -> bytes:
    if sys.byteorder == "big":
        rows.byteswap()
    return rows.tobytes()
