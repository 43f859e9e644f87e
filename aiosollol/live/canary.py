"""Compares the vectors of nodes by two short texts, beside the work."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.agreement import (
    QUICK_CANARIES,
    Sample,
    Use,
    Vectors,
    compare_samples,
    due,
    explain_difference,
)
from aiosollol.core.request import EmbedSettings, options_of
from aiosollol.errors import NodeError, SollolError
from aiosollol.live.calls import EmbedCall
from aiosollol.live.node_client import NodeClient
from aiosollol.wire.ollama.embeddings import dump_embed, fits_base64, has_nan

log = logging.getLogger("aiosollol")

PAUSE = 1.0
"""Seconds from a change until the nodes are looked at: many changes are one, and a short-lived pool
asks for no samples."""
IDLE_SECONDS = 10.0
"""Seconds that a sample waits for its node to be idle. So it delays no batch that is shorter, and a
longer one by a few percent at most, on that node only."""
SECONDS = 30.0
"""For a node's sample, with the wait for a slot."""
RETRY_SECONDS = 30.0
"""Until a node that gave no sample is asked again; doubled each time, up to an hour."""
_MAX_RETRY_SECONDS = 3600.0


class VectorCanary:
    """Asks nodes for samples of their vectors, and leaves out the nodes that differ.

    A node is asked after its first answer with a model, and again after the digest of the model or
    the version of the server has changed. Which nodes are asked, and which differ, is decided in
    `core.agreement`. A model is not loaded for this: a node without it in memory is not asked. A
    busy node is asked once it is idle, or after `IDLE_SECONDS`.

    ask_loaded: asks a node, by name, which models it has in memory, and records the answer; returns
    the error if there is none.
    """

    def __init__(
        self,
        cluster: ClusterState,
        node_client: NodeClient,
        ask_loaded: Callable[[str], Awaitable[NodeError | None]],
    ) -> None:
        self._cluster = cluster
        self._node_client = node_client
        self._ask_loaded = ask_loaded
        self._samples: dict[str, dict[Node, Sample]] = {}
        self._left_out: set[tuple[Node, str]] = set()
        self._asking: dict[Node, tuple[str, str]] = {}  # model and digest
        self._failures: dict[tuple[Node, str], tuple[int, float]] = {}

    async def run(self) -> None:
        """Watch the nodes until cancelled."""
        cluster = self._cluster
        async with anyio.create_task_group() as group:
            while True:
                version, first_uses = cluster.version, cluster.first_uses
                self._look(group)
                await cluster.wait_news(version, first_uses)
                await anyio.sleep(PAUSE)

    def _look(self, group: TaskGroup) -> None:
        """Ask each node that is due. A node with samples due of several models is asked in turn."""
        self._forget()
        models = dict.fromkeys(model for node in self._cluster for model in node.embeds)
        for model in models:
            samples = {node.name: it for node, it in self._samples.get(model, {}).items()}
            uses = {
                node.name: Use(node.digest(model), node.embeds[model], self._may_ask(node, model))
                for node in self._cluster
                if model in node.embeds and not node.is_down
            }
            for name in due(uses, samples):
                node = self._cluster[name]
                if node not in self._asking:
                    self._asking[node] = (model, node.digest(model))
                    group.start_soon(self._ask, node, model)

    def _forget(self) -> None:
        """Drop what is known of nodes that are gone, and of copies of models that have changed."""

        for model, samples in list(self._samples.items()):
            for node, sample in list(samples.items()):
                if self._is_gone(node) or node.digest(model) != sample.digest:
                    del samples[node]
            if not samples:
                del self._samples[model]
        for node, model in list(self._left_out):
            if self._is_gone(node) or not node.is_distrusted(model):
                # `verify` found it equal, or it has changed: its sample no longer holds.
                self._left_out.discard((node, model))
                self._samples.get(model, {}).pop(node, None)
        for node, model in list(self._failures):
            if self._is_gone(node):
                del self._failures[node, model]

    def _is_gone(self, node: Node) -> bool:
        return node.name not in self._cluster or self._cluster[node.name] is not node

    def _may_ask(self, node: Node, model: str) -> bool:
        _, retry_at = self._failures.get((node, model), (0, 0.0))
        return (
            not node.is_cold(model, node.last_options(model))
            and not node.is_draining
            and node.breaker.opens_at is None
            and (not node.is_distrusted(model) or (node, model) in self._left_out)
            and self._cluster.clock() >= retry_at
        )

    async def _ask(self, node: Node, model: str) -> None:
        digest, since = node.digest(model), node.embeds[model]
        try:
            with anyio.move_on_after(IDLE_SECONDS):
                while node.in_flight:
                    await node.wait_left()
            vectors = await self._vectors(node, model)
        finally:
            del self._asking[node]
        if vectors is None:
            count = self._failures.get((node, model), (0, 0.0))[0]
            pause = min(RETRY_SECONDS * 2.0 ** min(count, 16), _MAX_RETRY_SECONDS)
            self._failures[node, model] = (count + 1, self._cluster.clock() + pause)
        else:
            self._failures.pop((node, model), None)
            if (node.digest(model), node.embeds.get(model)) == (digest, since):
                self._samples.setdefault(model, {})[node] = Sample(digest, since, vectors)
        self._compare(model, digest)
        self._cluster.note_use()  # other models of this node may be due

    async def _vectors(self, node: Node, model: str) -> Vectors | None:
        """The vectors of the canaries, empty for NaN; None if the node gave none."""
        options = options_of(node.last_options(model))
        known = node.state.find_model(model)
        if options is None or known is None or self._is_gone(node):
            return None
        # With the options of its last request: others would make the server load the model again.
        settings = EmbedSettings(model=known.name, options=options or None)
        call = EmbedCall(
            model=known.name,
            texts=QUICK_CANARIES,
            body=dump_embed(settings, QUICK_CANARIES),
            fits_base64=fits_base64(settings),
            tokens=0.0,
        )
        with anyio.move_on_after(SECONDS):
            try:
                # It may have been unloaded since it was last asked.
                if await self._ask_loaded(node.name) is not None:
                    return None
                await node.enter()
                try:
                    if node.is_cold(model, node.last_options(model)) or node.is_draining:
                        return None
                    answer = await self._node_client.sample(call, node, SECONDS)
                finally:
                    node.leave_chunk()
            except SollolError as error:
                return [] if isinstance(error, NodeError) and has_nan(error) else None
            floats = memoryview(answer.floats).cast("B").cast("f").tolist()
            return [floats[i * answer.dim : (i + 1) * answer.dim] for i in range(answer.count)]
        return None

    def _compare(self, model: str, digest: str) -> None:
        """Leave out the nodes that differ, and take back those that no longer do."""
        nodes: dict[str, Node] = {}
        samples: dict[str, Sample] = {}
        known = self._samples.get(model, {})
        for node in self._cluster:
            sample = known.get(node)
            is_by_verify = node.is_distrusted(model) and (node, model) not in self._left_out
            if sample is not None and sample.digest == digest and not is_by_verify:
                nodes[node.name], samples[node.name] = node, sample
        trusted = {name for name in samples if not nodes[name].is_distrusted(model)}
        verdict = compare_samples(samples, trusted)
        if verdict is None:
            return
        if not verdict.is_majority and (model, digest) in self._asking.values():
            return  # a sample that may decide it is on its way
        # First those that come back, so that there is always a node that may be used.
        for name in verdict.agreeing:
            if name not in trusted:
                self._left_out.discard((nodes[name], model))
                self._cluster.trust(nodes[name], model, is_right=True)
                log.info("vectors of %s on %s agree with those of other nodes", model, name)
        for name in verdict.differing:
            if name in trusted:
                self._left_out.add((nodes[name], model))
                why = explain_difference(name, verdict)
                self._cluster.trust(nodes[name], model, is_right=False, detail=why)
                log.warning(
                    "vectors of %s on %s %s: left out of embeddings with it until the model or "
                    "the server there changes, or verify finds them equal",
                    model,
                    name,
                    why,
                )
