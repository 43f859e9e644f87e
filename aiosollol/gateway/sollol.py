"""The original's endpoints: documents that are queued, health, and statistics."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler

from aiosollol import __version__
from aiosollol.errors import InvalidInput, StorageError
from aiosollol.gateway.options import GatewayOptions
from aiosollol.gateway.permissions import check_model, may_use, owner_of, sees_only
from aiosollol.gateway.queueing import Queue
from aiosollol.gateway.results import send_results
from aiosollol.gateway.sending import STATE, whole
from aiosollol.wire import answers
from aiosollol.wire.asked import Refusal
from aiosollol.wire.gojson import GoJSONError, loads

if TYPE_CHECKING:
    from aiosollol.pool import OllamaPool

log = logging.getLogger("aiosollol")

_SETTINGS = ("dimensions", "truncate", "options", "keep_alive", "metadata")
_JOB = "/api/embed/batch/{id}"


class Original:
    """What the original's gateway has and Ollama has not."""

    def __init__(self, pool: OllamaPool, autobatch: Queue | None, options: GatewayOptions) -> None:
        self._pool = pool
        self._autobatch = autobatch
        self._model = options.batch_model

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/health", self.health),
            web.get("/api/stats", self.stats),
            web.post("/api/embed/batch", _logged(self.submit)),
            web.get("/api/batch-status", _logged(self.status)),
            web.get(_JOB, _logged(self.results)),
            web.delete(_JOB, _logged(self.cancel)),
            web.post(f"{_JOB}/retry", _logged(self.retry)),
        ]

    # ---- the cluster

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Status 503 if no node can be used, which is what load balancers look at."""
        health = health_of(self._pool)
        status = 200 if health["available_hosts"] else 503
        return whole(answers.json_answer(health, status=status))

    async def stats(self, request: web.Request) -> web.StreamResponse:
        stats = stats_of(self._pool)
        for node in stats["vram_monitoring"]["nodes"].values():
            node["models"] = {
                name: size for name, size in node["models"].items() if may_use(request, name)
            }
        return whole(answers.json_answer(stats))

    # ---- documents that are queued

    async def submit(self, request: web.Request) -> web.StreamResponse:
        queue = self._queue()
        fields = _object(await request.read())
        docs, model = fields.get("docs"), fields.get("model") or self._model
        if not isinstance(docs, list):
            raise InvalidInput('"docs" must be a list of texts')
        if not isinstance(model, str):
            raise InvalidInput('"model" must be the name of an embedding model')
        request[STATE].model = model
        check_model(request, model)  # the guard does not know the default of the options
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
        return whole(answers.json_answer(answer, status=202))

    async def status(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.query.get("job"), sees_only(request)
        if job is not None:
            return whole(answers.json_answer((await queue.status(job, owner=owner)).as_dict()))
        # With the address at which people can watch the engine that computes them.
        engine = {"dask": self._pool.get_stats()["dask"]}
        return whole(answers.json_answer((await queue.status(owner=owner)).as_dict() | engine))

    async def results(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.match_info["id"], sees_only(request)
        status = await queue.status(job, owner=owner)
        check_model(request, status.model)
        return await send_results(request, queue, status, owner)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        status = await self._queue().cancel(request.match_info["id"], owner=sees_only(request))
        return whole(answers.json_answer(status.as_dict()))

    async def retry(self, request: web.Request) -> web.StreamResponse:
        queue, job, owner = self._queue(), request.match_info["id"], sees_only(request)
        check_model(request, (await queue.status(job, owner=owner)).model)
        count = await queue.retry(job, owner=owner)
        status = (await queue.status(job, owner=owner)).as_dict()
        return whole(answers.json_answer({**status, "retried": count}))

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
