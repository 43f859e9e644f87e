"""The original's endpoints: documents that are queued, health, and statistics."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aiosollol import __version__
from aiosollol.errors import InvalidInput, StorageError
from aiosollol.gateway.bodies import parse
from aiosollol.gateway.endpoints import Endpoint, Handler
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.queueing import Queue
from aiosollol.gateway.results import BINARY, NDJSON, send_results
from aiosollol.gateway.schema import BOOLEAN, OBJECT, STRING, Schema, array, ref, told
from aiosollol.gateway.sending import STATE, whole
from aiosollol.wire import answers
from aiosollol.wire.asked import Refusal
from aiosollol.wire.gojson import GoJSONError, loads

if TYPE_CHECKING:
    from aiosollol.pool import OllamaPool

log = logging.getLogger("aiosollol")

_TAG = "SOLLOL"
_SETTINGS = ("dimensions", "truncate", "options", "keep_alive", "metadata")
_DOCUMENTS: dict[str, Schema] = {
    "docs": {**array(STRING), "minItems": 1},
    "model": ref("Model"),
    "dimensions": {"type": "integer", "minimum": 1},
    "truncate": BOOLEAN,
    "options": ref("Options"),
    "keep_alive": ref("KeepAlive"),
    "metadata": told(OBJECT, "comes back with the status of the job"),
}
_DISK = (501, 503, 507)
_JOB = "/api/embed/batch/{id}"


class Original:
    """What the original's gateway has and Ollama has not."""

    def __init__(self, pool: OllamaPool, autobatch: Queue | None, options: GatewayOptions) -> None:
        self._pool = pool
        self._autobatch = autobatch
        self._model = options.batch_model

    def endpoints(self) -> list[Endpoint]:
        results = ("application/json", NDJSON, BINARY)
        job, queue = ref("Job"), (404, *_DISK)
        return [
            Endpoint(
                "GET",
                "/api/health",
                self.health,
                "How the nodes are; 503 if none can be used",
                tag=_TAG,
                returns=ref("Health"),
                otherwise={503: ref("Health")},
            ),
            Endpoint(
                "GET",
                "/api/stats",
                self.stats,
                "What the nodes have done",
                tag=_TAG,
                returns=ref("Stats"),
            ),
            Endpoint(
                "POST",
                "/api/embed/batch",
                _logged(self.submit),
                "Queue documents, whose vectors are made in good time",
                tag=_TAG,
                body=_DOCUMENTS,
                required=("docs",),
                example={"docs": ["Document 1", "Document 2"], "model": "nomic-embed-text"},
                status=202,
                returns=ref("Submitted"),
                fails=_DISK,
            ),
            Endpoint(
                "GET",
                "/api/batch-status",
                _logged(self.status),
                "How far the jobs are, or one of them",
                tag=_TAG,
                query={"job": "id of a job"},
                returns={"anyOf": [ref("Queue"), job]},
                fails=queue,
            ),
            Endpoint(
                "GET",
                _JOB,
                _logged(self.results),
                "Vectors of a job",
                tag=_TAG,
                answers=results,
                returns=ref("Results"),
                parts=ref("ResultLine"),
                fails=(409, *queue),
            ),
            Endpoint(
                "DELETE",
                _JOB,
                _logged(self.cancel),
                "Drop what is queued of a job",
                tag=_TAG,
                returns=job,
                fails=queue,
            ),
            Endpoint(
                "POST",
                f"{_JOB}/retry",
                _logged(self.retry),
                "Queue what failed of a job again",
                tag=_TAG,
                returns=ref("RetriedJob"),
                fails=(400, *queue),
            ),
        ]

    # ---- the cluster

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Status 503 if no node can be used, which is what load balancers look at."""
        health = health_of(self._pool)
        status = 200 if health["available_hosts"] else 503
        return whole(answers.json_answer(health, status=status))

    async def stats(self, request: web.Request) -> web.StreamResponse:
        return whole(answers.json_answer(stats_of(self._pool)))

    # ---- documents that are queued

    async def submit(self, request: web.Request) -> web.StreamResponse:
        queue = self._queue()
        fields = await parse(request, _object)
        docs, model = fields.get("docs"), fields.get("model") or self._model
        if not isinstance(docs, list):
            raise InvalidInput('"docs" must be a list of texts')
        if not isinstance(model, str):
            raise InvalidInput('"model" must be the name of an embedding model')
        request[STATE].model = model
        settings = {name: fields[name] for name in _SETTINGS if fields.get(name) is not None}
        job = await queue.submit(docs, model, **settings)
        answer = {
            "job_id": job,
            "status": "pending",
            "count": len(docs),
            "total_items": len(docs),
            "message": f"queued {len(docs)} documents for batch embedding",
            "status_url": f"/api/batch-status?job={job}",
            "results_url": f"/api/embed/batch/{job}",
        }
        return whole(answers.json_answer(answer, status=202))

    async def status(self, request: web.Request) -> web.StreamResponse:
        queue, job = self._queue(), request.query.get("job")
        if job is not None:
            return whole(answers.json_answer((await queue.status(job)).as_dict()))
        # With the address at which people can watch the engine that computes them.
        engine = {"dask": self._pool.get_stats()["dask"]}
        return whole(answers.json_answer((await queue.status()).as_dict() | engine))

    async def results(self, request: web.Request) -> web.StreamResponse:
        queue, job = self._queue(), request.match_info["id"]
        return await send_results(request, queue, await queue.status(job))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        status = await self._queue().cancel(request.match_info["id"])
        return whole(answers.json_answer(status.as_dict()))

    async def retry(self, request: web.Request) -> web.StreamResponse:
        queue, job = self._queue(), request.match_info["id"]
        count = await queue.retry(job)
        return whole(answers.json_answer({**(await queue.status(job)).as_dict(), "retried": count}))

    def _queue(self) -> Queue:
        if self._autobatch is None:
            raise Refusal(501, "this gateway queues no documents: start it with --autobatch")
        return self._autobatch


def _logged(handler: Handler) -> Handler:
    """`handler`, with a log of what is wrong with the file: clients are not told its name."""

    async def logged(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except StorageError as error:
            log.warning("queue of documents: %s", error)
            raise

    return logged


def health_of(pool: OllamaPool) -> dict[str, Any]:
    """``status``: "healthy" if all nodes can be used, "degraded" if some can, else "unhealthy"."""
    hosts = _hosts(pool.get_stats())
    available = sum(host["available"] for host in hosts)
    word = "unhealthy" if not available else "healthy" if available == len(hosts) else "degraded"
    return {
        "status": word,
        "service": "SOLLOL",
        "version": __version__,
        "task_distribution": {"enabled": bool(hosts), "ollama_nodes": len(hosts)},
        "available_hosts": available,
        "hosts": hosts,
        "timestamp": _now(),
    }


def stats_of(pool: OllamaPool) -> dict[str, Any]:
    """``hosts`` and ``timestamp`` as the original has them, and all of `OllamaPool.get_stats`."""
    stats = pool.get_stats()
    return {**stats, "hosts": _hosts(stats), "timestamp": _now()}


_OF_HOST = (
    "available",
    "latency_ms",
    "success_rate",
    "cpu_load",
    "gpu_free_mem",
    "priority",
    "circuit_breaker",
    "last_error",
)


def _hosts(stats: dict[str, Any]) -> list[dict[str, Any]]:
    updated = _now()
    return [
        {"host": key, **{name: node[name] for name in _OF_HOST}, "last_updated": updated}
        for key, node in stats["node_performance"].items()
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = loads(body)
    except GoJSONError as error:
        raise Refusal(400, "missing request body" if str(error) == "EOF" else str(error)) from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the request must be a JSON object")
    return fields
