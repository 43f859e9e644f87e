"""Runs one batch: executes the instructions of `core.scheduling.state_machine`."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from aiosollol.cluster.node import Node, has_same_vectors
from aiosollol.cluster.state import ClusterState
from aiosollol.core.blame import OUTAGE_PATIENCE, RETURN_PATIENCE, patience
from aiosollol.core.redaction import summary
from aiosollol.core.report import NodeShare
from aiosollol.core.request import EmbedSettings, loading_of, reload_key
from aiosollol.core.routing.retry import classify
from aiosollol.core.routing.wait_queue import LOW
from aiosollol.core.scheduling.batch_nodes import Chunk
from aiosollol.core.scheduling.dispatcher import Cancel, Instruction, ScheduleOptions, Send
from aiosollol.core.scheduling.live_traffic import LIVE_LATENCY_TARGET
from aiosollol.core.scheduling.planner import (
    BatchShape,
    Plan,
    PlanOptions,
    Reason,
    plan,
)
from aiosollol.core.scheduling.state_machine import BatchState
from aiosollol.core.scheduling.token_counts import TokenCounts
from aiosollol.core.scheduling.vector_buffer import VectorBuffer
from aiosollol.errors import (
    NodeError,
    NodeUnreachable,
    NoNodeAvailable,
    ProtocolError,
    RequestFailed,
    SollolError,
    first_of,
)
from aiosollol.live.calls import EmbedCall
from aiosollol.live.node_client import NodeClient, promised_dim
from aiosollol.wire.ollama import embeddings as wire

log = logging.getLogger("aiosollol")

MAX_VAIN_RETURNS = 3
"""How often a node may come back to a batch without answering anything in between."""

WARN_SECONDS = 0.5
"""How long no node must answer until a batch logs that it waits."""

CHECK_TEXT = "Is this server able to embed a short text?"
"""Sent to a node that failed repeatedly: it cannot be the cause of a failure."""


class BatchJob(NamedTuple):
    """The input of a batch.

    settings: for every request.
    texts: distinct texts.
    tokens: estimated tokens of each text.
    timeout: seconds for one request.
    plan: the plan of the batch.
    options: options of the plan, for nodes that join later.
    digest: required digest of the model; None for any.
    patience: seconds to wait while no node answers, if one has answered before.
    times: see `core.scheduling.token_counts.TokenCounts`.
    priority: of its chunks beside live requests, see `core.routing.wait_queue`.
    live_latency_target: seconds of a chunk while there are live requests.
    """

    settings: EmbedSettings
    texts: Sequence[str]
    tokens: Sequence[float]
    timeout: float
    plan: Plan
    options: PlanOptions
    digest: str | None = None
    patience: float = OUTAGE_PATIENCE
    times: Mapping[int, int] | None = None
    priority: int = LOW
    live_latency_target: float = LIVE_LATENCY_TARGET


class Executor:
    """One running batch. Create one, await `run` once, then read `state`.

    node_client: sends a request to a node.
    on_progress: called with the number of settled texts, whenever it has grown.
    """

    def __init__(
        self,
        job: BatchJob,
        buffer: VectorBuffer,
        cluster: ClusterState,
        node_client: NodeClient,
        on_progress: Callable[[int], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._job = job
        self.plan = job.plan
        self._model = job.settings.model
        self._reload_key = reload_key(job.settings.options)
        self._loading = loading_of(job.settings.options, job.settings.keep_alive)
        self._fits_base64 = wire.fits_base64(job.settings)
        self._buffer = buffer
        self._cluster = cluster
        self._node_client = node_client
        self._on_progress = on_progress
        self.state = BatchState(
            job.tokens,
            ScheduleOptions(
                live_chunk_seconds=job.live_latency_target,
                return_patience=min(RETURN_PATIENCE, job.patience),
            ),
            trials=job.plan.trials,
            expected_seconds=_expected_seconds(job.plan),
            rng=rng or random.Random(),
            times=job.times,
        )
        self.counts = TokenCounts(job.tokens, job.times)
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._wake = anyio.Event()
        self._told = 0
        self._has_warned = False
        self._items_at_return: dict[str, int] = {}
        self._vain_returns: Counter[str] = Counter()

    async def run(self) -> None:
        """Wait until every text has a vector in the buffer or an error in ``state.errors``."""
        try:
            await self._run()
        except BaseExceptionGroup as group:
            # Exceptions from the caller's `on_progress` must arrive unwrapped.
            raise first_of(group) from None

    async def _run(self) -> None:
        state = self.state
        version = self._cluster.version
        self._admit_nodes()
        async with anyio.create_task_group() as group:
            self._follow(group, state.start(self._cluster.clock()))
            group.start_soon(self._watch_cluster, group, version)
            while not state.is_finished:
                tick = state.next_tick(self._cluster.clock())
                give_up_at = self._give_up_at()
                deadline = min(math.inf if tick is None else tick, give_up_at)
                with anyio.CancelScope(deadline=deadline) as wait:
                    await self._wake.wait()
                if wait.cancelled_caught:
                    now = self._cluster.clock()
                    late = now >= give_up_at
                    self._follow(
                        group, state.abandon(self._outage(), now) if late else state.tick(now)
                    )
            group.cancel_scope.cancel()
        if not state.is_finished:
            # A task of the group was cancelled from outside, which ends the group silently.
            self.give_up(RequestFailed("the batch was cut short: one of its tasks was cancelled"))

    def give_up(self, error: SollolError) -> None:
        """Fail the texts without a vector with `error`."""
        self.state.abandon(error, self._cluster.clock())

    # Node changes.

    async def _watch_cluster(self, group: TaskGroup, version: int) -> None:
        while True:
            await self._cluster.wait_changed(version)
            version = self._cluster.version
            for node in list(self._cluster):
                why = self._why_lost(node)
                if why and self.state.has_node(node.name):
                    lost = NodeUnreachable(node.name, why)
                    now = self._cluster.clock()
                    self._follow(
                        group,
                        self.state.node_lost(node.name, now, lost, may_return=node.is_down),
                    )
            self._follow(group, self._admit_nodes())

    def _why_lost(self, node: Node) -> str:
        """Why a node can take no part any more; "" if it can."""
        if node.is_down:
            return node.error or "is down"
        if node.is_draining:
            return "is being drained"
        if node.is_distrusted(self._model):
            return "returns different vectors than the other nodes"
        return ""

    def _admit_nodes(self) -> list[Instruction]:
        """Add every usable node: up, with the model, and with comparable vectors."""
        now = self._cluster.clock()
        instructions: list[Instruction] = []
        for node in self._cluster:
            if (
                self._is_usable(node)
                and not self.state.has_node(node.name)
                and self._may_return(node)
            ):
                instructions += self.state.node_up(
                    node.name,
                    node.cost(self._model),
                    now,
                    window=node.window,
                    ahead=node.ahead(now),
                    standby=not self._takes_part(node),
                    expects_live=node.expects_live(now),
                )
        return instructions

    def _is_usable(self, node: Node) -> bool:
        return (
            node.has_model(self._model)
            and not self._why_lost(node)
            and has_same_vectors(node, self._model, self._job.digest)
        )

    def _takes_part(self, node: Node) -> bool:
        """Whether the plan has work for a node, or would if it had included the node."""
        planned = self._job.plan
        if node.name in planned.shares or node.name in planned.standby:
            return node.name in planned.shares
        if any(node.name == second for _, second in planned.trials):
            return False
        names = {node.name, *planned.shares}
        nodes = [each for each in self._cluster if each.name in names]
        batch = BatchShape(len(self._job.texts), sum(self._job.tokens))
        view = self._cluster.candidates(self._model, nodes)
        verdicts = self._cluster.verdicts(self._model)
        return node.name in plan(view, batch, self._job.options, verdicts).shares

    def _may_return(self, node: Node) -> bool:
        # A node that was lost for its answers is not down, and must not come back at once; nor
        # repeatedly, if its probes succeed but its requests fail.
        if node.name not in self.state.failures.last_errors:
            return True
        if node.state.failures:
            return False
        items = self.state.tallies[node.name].items
        if items == self._items_at_return.get(node.name):
            self._vain_returns[node.name] += 1
        self._items_at_return[node.name] = items
        return self._vain_returns[node.name] < MAX_VAIN_RETURNS

    def _give_up_at(self) -> float:
        """When to give up, if no node answers until then; infinity while one works."""
        since = self.state.silent_since
        if since is None:
            return math.inf
        if self.state.failures.refusal is not None:
            return -math.inf
        has_answered = any(
            name in self._cluster and self._cluster[name].counters.succeeded
            for name in self.state.tallies
        )
        if not has_answered and self.state.has_flights:
            return math.inf
        seconds = patience(has_answered=has_answered, outage=self._job.patience)
        is_late = self._cluster.clock() - since >= WARN_SECONDS
        if has_answered and is_late and not self._has_warned:
            self._has_warned = True
            reasons = "; ".join(map(summary, self.state.failures.last_errors.values()))
            log.warning("no node answers; the batch waits up to %g s (%s)", seconds, reasons)
        return since + seconds

    def _outage(self) -> SollolError:
        if self.state.failures.refusal is not None:
            return self.state.failures.refusal
        reasons = {name: _detail(error) for name, error in self.state.failures.last_errors.items()}
        return NoNodeAvailable(f"no node is left that can embed with {self._model!r}", reasons)

    # Instructions.

    def _follow(self, group: TaskGroup, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(chunk):
                    self._scopes[chunk.id] = scope = anyio.CancelScope()
                    group.start_soon(self._send, group, chunk, scope)
                case Cancel(chunk):
                    self._scopes[chunk.id].cancel()
        if self._on_progress is not None and self.state.done_count > self._told:
            self._told = self.state.done_count
            self._on_progress(self._told)
        wake, self._wake = self._wake, anyio.Event()
        wake.set()

    async def _send(self, group: TaskGroup, chunk: Chunk, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                instructions = await self._deliver(chunk)
            except NodeError as error:
                now = self._cluster.clock()
                self._look_for_live(chunk.node, now)
                instructions = self.state.failed(chunk, now, classify(error), error)
            self._follow(group, instructions)
        del self._scopes[chunk.id]

    def _look_for_live(self, name: str, now: float) -> None:
        if name in self._cluster:
            self.state.live(name, is_expected=self._cluster[name].expects_live(now))

    async def _deliver(self, chunk: Chunk) -> list[Instruction]:
        """Send a chunk and store its vectors. Raises NodeError."""
        job = self._job
        if chunk.node not in self._cluster:
            raise NodeUnreachable(chunk.node, "was removed")
        node = self._cluster[chunk.node]
        texts = [job.texts[item] for item in chunk.items] or [CHECK_TEXT]
        call = EmbedCall(
            model=self._model,
            texts=texts,
            body=wire.dump_embed(job.settings, texts),
            fits_base64=self._fits_base64,
            tokens=chunk.tokens,
            options=self._reload_key,
            loading=self._loading,
        )
        await node.enter_chunk(self._cluster.clock(), job.priority)
        if node.is_draining:  # the drain began after the chunk was assigned
            node.leave_chunk()
            raise NodeUnreachable(chunk.node, "is being drained")
        # Read only now: the first answer of the batch may have arrived during the wait.
        dim = self._buffer.dim or promised_dim(node, self._model, job.settings.dimensions)
        self.state.began(chunk, self._cluster.clock())
        request, trace = call.request(), self._node_client.trace()
        answer = await self._node_client.embed(
            call, node, request, trace, job.timeout, dim=dim, is_live=False
        )
        if self._buffer.dim not in (0, answer.dim):
            raise ProtocolError(
                node.name, f"answered {answer.dim} dimensions, expected {self._buffer.dim}"
            )
        if not chunk.is_check:
            self._buffer.put(chunk.items, answer.floats, answer.dim)
            self.counts.answered(node.name, chunk.items, answer.tokens)
        if answer.tokens:
            characters = sum(map(len, texts))
            self._cluster.learn_ratio(self._model, characters, len(texts), answer.tokens)
        now = self._cluster.clock()
        cost = node.cost(self._model)
        self._look_for_live(node.name, now)
        found, refused = len(self.state.findings), len(self.state.failures.wrong_refusals)
        instructions = self.state.done(chunk, now, cost)
        for name in self.state.failures.wrong_refusals[refused:]:
            if name in self._cluster:
                self._cluster.refused_wrongly(self._cluster[name], now)
        for finding in self.state.findings[found:]:
            self._cluster.remember(self._model, finding)
        return instructions

    # Results.

    def shares(self, seconds: float) -> dict[str, NodeShare]:
        """The share of each node, by name, in a batch of `seconds`."""
        return {
            name: NodeShare(
                items=tally.items,
                requests=tally.requests,
                tokens=self.counts.of(name),
                seconds=tally.busy,
                idle=max(0.0, seconds - tally.busy),
                wasted=tally.wasted,
                retries=tally.retries,
            )
            for name, tally in self.state.tallies.items()
            if tally.requests
        }


def _expected_seconds(planned: Plan) -> float:
    """Duration after which the excluded nodes join a batch.

    Infinity if they were not excluded for their speed.
    """
    is_for_speed = planned.reason in (Reason.DOMINANT_NODE, Reason.SMALL_BATCH, Reason.TOP_NODES)
    return planned.predicted_seconds if is_for_speed else math.inf


def _detail(error: SollolError) -> str:
    """An error without the name of the node that it is listed under."""
    return error.detail if isinstance(error, NodeError) else str(error)
