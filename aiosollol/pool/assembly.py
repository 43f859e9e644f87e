"""Creates the parts of a pool and connects them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import NamedTuple

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.config.resolve import Resolved, resolve
from aiosollol.config.settings import PoolSettings, RoutingStrategy
from aiosollol.core.agreement import check_digest
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.core.request import check_model
from aiosollol.core.routing.strategies import RoutingFunction, strategy_of
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.errors import InvalidInput
from aiosollol.live.admission import Admission
from aiosollol.live.canary import VectorCanary
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.live.router import LiveOptions, RequestRouter
from aiosollol.net.transport import HttpTransport
from aiosollol.pool.admin import PoolAdmin, Strategy
from aiosollol.pool.background import BackgroundTasks
from aiosollol.pool.bootstrap import begin, load_engines, load_sharing
from aiosollol.pool.collections import CollectionBatches, WorkerAccess
from aiosollol.pool.embedding import Embedder
from aiosollol.pool.gateway_access import GatewayAccess
from aiosollol.pool.generation import Generation
from aiosollol.pool.lifecycle import Lifecycle, OpenState
from aiosollol.pool.registry import NodeRegistry
from aiosollol.ports import Tracing, Transport
from aiosollol.telemetry.tracing import PassOn


class PoolParts(NamedTuple):
    """The objects that `OllamaPool` delegates to."""

    registry: NodeRegistry
    lifecycle: Lifecycle
    embedder: Embedder
    generation: Generation
    collections: CollectionBatches
    operations: PoolAdmin
    engine_batches: EngineBatches
    gateway_access: GatewayAccess
    worker_access: WorkerAccess


def make_parts(
    nodes: Iterable[NodeLike] | NodeRegistry | None,
    settings: PoolSettings,
    require_digest: Mapping[str, str] | None,
    routing_strategy: RoutingStrategy | RoutingFunction | None,
    transport_factory: Callable[[NodeSpec], Transport],
    tracing: Tracing | None,
) -> PoolParts:
    """The parts of a pool, from the arguments of `OllamaPool`. Raises the same errors."""
    function = routing_strategy if callable(routing_strategy) else None
    name = None if function is not None else routing_strategy
    return assemble(
        nodes,
        resolve({**settings, "routing_strategy": name}),
        require_digest=require_digest,
        routing_function=function,
        transport_factory=transport_factory,
        tracing=tracing,
    )


def assemble(
    nodes: Iterable[NodeLike] | NodeRegistry | None,
    resolved: Resolved,
    *,
    require_digest: object = None,
    routing_function: RoutingFunction | None = None,
    transport_factory: Callable[[NodeSpec], Transport] = HttpTransport,
    tracing: Tracing | None = None,
) -> PoolParts:
    """The parts of a pool with these settings, ignoring the environment. Starts nothing.

    routing_function: replaces the strategy named in the settings. Other arguments: as for
    `OllamaPool`.

    Raises InvalidInput, ConfigError, MissingExtra.
    """
    settings = resolved.settings
    strategy = _strategy(routing_function, settings.routing_strategy)
    registry, search = begin(nodes, resolved, transport_factory)
    registry.limit_waiting(settings.max_waiting)
    planning = PlanOptions(
        policy=settings.policy, min_gain=settings.min_gain, same_machine=settings.same_machine
    )
    state = OpenState()
    rng = Random()
    tracing = PassOn() if tracing is None else tracing
    background = BackgroundTasks(
        registry,
        transport_factory,
        search=search,
        follows=settings.watch_network,
        metrics_interval=settings.metrics_interval,
        check_interval=settings.check_interval,
    )
    eligibility = Eligibility(registry, background.monitor.probe, _checked_digests(require_digest))
    loads = ModelLoader(background.spawn)
    node_client = NodeClient(registry, background.transport_of, loads, tracing)
    admission = Admission(
        registry, eligibility, strategy.function, settings.wait_timeout, rng, background.spawn
    )
    live_options = LiveOptions(
        settings.max_retries,
        settings.retry_budget,
        settings.hedge_rate,
        settings.first_byte_timeout,
        settings.outage_patience,
        settings.stall_timeout,
    )
    live = RequestRouter(
        registry, eligibility, admission, node_client, live_options, background.spawn, rng
    )
    engines = load_engines(settings, registry)
    engine_batches = EngineBatches(registry, engines, settings.dask_threshold)
    sharing = load_sharing(engines, settings, registry, background.monitor.probe)
    canary = (
        VectorCanary(registry, node_client, background.monitor.ask_loaded)
        if settings.canary
        else None
    )
    batches = BatchRunner(
        registry,
        node_client,
        eligibility,
        engine_batches,
        settings.embed_timeout,
        settings.outage_patience,
        settings.live_latency_target,
    )
    embedder = Embedder(registry, live, batches, planning, settings.embed_timeout, state.check)
    generation = Generation(live, eligibility, registry.clock, settings.chat_timeout, state.check)
    lifecycle = Lifecycle(
        state,
        registry,
        background,
        eligibility,
        loads,
        live,
        batches,
        embedder,
        generation,
        engine_batches,
        sharing,
        canary,
        settings.close_timeout,
    )
    return PoolParts(
        registry,
        lifecycle,
        embedder,
        generation,
        CollectionBatches(batches, engine_batches, eligibility, planning, state.check, live.calls),
        PoolAdmin(
            registry, eligibility, node_client, batches, strategy, planning, rng, state, live.calls
        ),
        engine_batches,
        GatewayAccess(
            registry,
            eligibility,
            live,
            background.transport_of,
            tracing,
            strategy.name,
            settings.embed_timeout,
            settings.chat_timeout,
            settings.wait_timeout,
            state.check,
            embedder,
        ),
        WorkerAccess(batches, eligibility, state.check),
    )


def _strategy(function: RoutingFunction | None, name: str) -> Strategy:
    if function is None:
        return Strategy(strategy_of(name), name)
    return Strategy(function, getattr(function, "__name__", "custom"))


def _checked_digests(require_digest: object) -> Mapping[str, str]:
    if require_digest is None:
        return {}
    if not isinstance(require_digest, Mapping):
        raise InvalidInput(
            "require_digest must map models to digests, as in {'nomic-embed-text': '0a109f422b47'},"
            f" not {require_digest!r}"
        )
    for model, digest in require_digest.items():
        check_model(model)
        problem = check_digest(digest)
        if problem is not None:
            raise InvalidInput(f"require_digest of {model}: {problem}")
    return dict(require_digest)
