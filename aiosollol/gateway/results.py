"""The results of a queued job in the form that the client accepts: JSON, NDJSON or raw float32."""

from __future__ import annotations

import sys
from array import array
from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from aiosollol.gateway.queueing import Job, Page, Queue
from aiosollol.gateway.sending import REQUEST_ID, STATE, begin
from aiosollol.wire import answers
from aiosollol.wire.asked import Refusal

JSON, NDJSON, BINARY = answers.API_JSON, answers.NDJSON, "application/octet-stream"


async def send_results(
    request: web.Request, queue: Queue, status: Job, owner: str | None
) -> web.StreamResponse:
    """Send what is settled of a job, page by page: however large it is, little is in memory.

    JSON has the status of the job, the vectors by their place (null where there is none yet) and
    the errors. NDJSON has a line for each document that is settled. Raw float32, little-endian, row
    after row, is for a job that is over; rows without a vector are NaN.
    """
    pages = aiter(queue.results(status.job_id, owner=owner))
    first = await anext(pages, None)  # if that fails, there is a status to say so
    kind = accepted(request.headers.get("Accept", ""))
    headers = {"Content-Type": kind, REQUEST_ID: request[STATE].id}
    if kind == BINARY:
        if not status.is_over:
            done = status.completed + status.failed
            raise Refusal(409, f"the job is not done yet: {done} of {status.total} documents are")
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
    """The content type of the results for an Accept header; JSON if nothing else is wanted."""
    wanted = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    for kind in wanted:
        if kind in (NDJSON, BINARY):
            return kind
        if kind in ("application/json", "*/*"):
            break
    return JSON


async def _with_vectors(
    page: Page | None, pages: AsyncIterator[Page]
) -> tuple[Page | None, AsyncIterator[Page]]:
    """The first page that has vectors: their length is in a header."""
    while page is not None and not page.indices:
        page = await anext(pages, None)
    return page, pages


async def _all(first: Page | None, pages: AsyncIterator[Page]) -> AsyncIterator[Page]:
    if first is not None:
        yield first
        async for page in pages:
            yield page


def _vectors(page: Page) -> list[tuple[int, bytes]]:
    """The vectors of a page as JSON, each with its place in the job."""
    if not page.indices:
        return []
    vectors = answers.json_vectors(page.vectors.buffer.cast("B"), page.vectors.dim)
    return list(zip(page.indices, vectors, strict=True))


async def _json(
    first: Page | None, pages: AsyncIterator[Page], status: Job
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
    first: Page | None, pages: AsyncIterator[Page], status: Job
) -> AsyncIterator[bytes]:
    async for page in _all(first, pages):
        lines = {
            index: b'{"index":%d,"embedding":%b}\n' % (index, vector)
            for index, vector in _vectors(page)
        }
        for index, error in page.errors.items():
            lines[index] = answers.line({"index": index, "error": error})
        yield b"".join(lines[index] for index in sorted(lines))


async def _binary(
    first: Page | None, pages: AsyncIterator[Page], dim: int, total: int
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
