"""What an operator asks of a pool: to load a model ahead, to compare nodes, to empty one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import anyio

from aiosollol.core.agreement import CANARIES, Agreement, Vectors, compare
from aiosollol.core.node import full_name
from aiosollol.core.redaction import safe_repr
from aiosollol.core.request import EmbedSettings
from aiosollol.errors import InvalidInput, NoNodeAvailable, PoolClosed, SollolError
from aiosollol.exchange import GENERATE_PATH, EmbedCall, Exchange, TalkCall
from aiosollol.nodes import Node
from aiosollol.registry import Registry
from aiosollol.roster import Roster
from aiosollol.wire.chat import load_text
from aiosollol.wire.embed import dump_embed, fits_base64

log = logging.getLogger("aiosollol")

_VERIFY_SECONDS = 60.0


class Care:
    """Operations on the nodes of a registry. roster, exchange: as for `LiveCalls`."""

    def __init__(self, registry: Registry, roster: Roster, exchange: Exchange) -> None:
        self._registry = registry
        self._roster = roster
        self._exchange = exchange

    async def warm(self, model: str, names: Iterable[str] | None) -> dict[str, float | SollolError]:
        """Node -> seconds until it had `model` in memory, or why it has not.

        Raises InvalidInput for a node that is not there, and PoolClosed; without `names` also
        ModelNotFound, NoNodeAvailable.
        """
        if names is None:
            await self._roster.probe_all()  # to leave out none that is just a little slower to tell
            nodes: Sequence[Node] = await self._roster.wait_ready(model, patient=True)
        elif isinstance(names, str):
            shown = safe_repr(names)
            raise InvalidInput(f"nodes must be a list, even of one node: nodes=[{shown}]")
        elif not isinstance(names, Iterable):
            raise InvalidInput(f"nodes must be a list of names, not {safe_repr(names)}")
        else:
            nodes = [self._registry.find(name) for name in names]
        results: dict[str, float | SollolError] = {}

        async def load(node: Node) -> None:
            began = self._registry.clock()
            try:
                # As for a conversation, or if the model is made for embedding alone, for that.
                talk = TalkCall(GENERATE_PATH, "generate", model, b"", load_text, 0.0)
                await self._exchange.load(node, talk, self._call(model, []))
                results[node.name] = self._registry.clock() - began
            except SollolError as error:  # a task group would bury it in a group
                results[node.name] = error

        async with anyio.create_task_group() as group:
            for node in nodes:
                group.start_soon(load, node)
        self._check_open()
        return {node.name: results[node.name] for node in nodes}

    def _check_open(self) -> None:
        # What fails when the pool is closed tells nothing of the nodes.
        if self._roster.is_closed:
            raise PoolClosed("the pool was closed during this call")

    async def verify(self, model: str) -> Agreement:
        """How well the nodes agree on the vectors of `model`; outliers are distrusted from now on.

        The reference is one of those whose vectors are in use: what is to be found out is who may
        join them. Raises ModelNotFound, NoNodeAvailable, PoolClosed.
        """
        nodes = await self._roster.wait_ready(model, patient=True)
        in_use: Collection[Node] = ()
        with contextlib.suppress(NoNodeAvailable):
            in_use = self._roster.comparable(model)
        alone: dict[str, Vectors] = {}
        listed: dict[str, Vectors] = {}
        failed: dict[str, str] = {}

        async def ask(node: Node) -> None:
            try:
                singles = [await self._vectors(node, model, [text]) for text in CANARIES]
                listed[node.name] = await self._vectors(node, model, CANARIES)
                alone[node.name] = [vector for vectors in singles for vector in vectors]
            except SollolError as error:
                failed[node.name] = str(error)

        async with anyio.create_task_group() as group:
            for node in nodes:
                group.start_soon(ask, node)
        self._check_open()
        order = [node.name for node in nodes if node.name in alone]
        own = [node.name for node in nodes if node.name in alone and node in in_use]
        agreement = compare(
            model,
            {name: alone[name] for name in order},
            {name: listed[name] for name in order},
            {node.name: node.digest(model) for node in nodes},
            failed,
            own or order,
        )
        self._distrust(full_name(model), nodes, agreement)
        return agreement

    def _distrust(self, name: str, nodes: Iterable[Node], agreement: Agreement) -> None:
        for node in nodes:
            is_outlier = node.name in agreement.outliers
            if is_outlier or node.name not in agreement.failed:
                self._registry.trust(node, name, is_right=not is_outlier)
        if agreement.outliers:
            log.warning(
                "vectors of %s on %s are not those of the other nodes: left out of batches",
                name,
                ", ".join(agreement.outliers),
            )

    async def _vectors(self, node: Node, model: str, texts: Sequence[str]) -> Vectors:
        call, trace = self._call(model, texts), self._exchange.trace()
        await node.enter()
        answer = await self._exchange.embed(
            call, node, call.request(), trace, _VERIFY_SECONDS, is_live=False
        )
        floats = memoryview(answer.floats).cast("B").cast("f").tolist()
        return [floats[i * answer.dim : (i + 1) * answer.dim] for i in range(len(texts))]

    def _call(self, model: str, texts: Sequence[str]) -> EmbedCall:
        settings = EmbedSettings(model=model)
        return EmbedCall(
            model=model,
            texts=texts,
            body=dump_embed(settings, texts),
            fits_base64=fits_base64(settings),
            tokens=self._registry.ratio(model).tokens_of(texts),
        )

    async def drain(self, name: str, on_wait: Callable[[int], None] | None = None) -> None:
        """Give a node no more work, and return when it has none under way.

        on_wait: told how many requests are still under way, whenever that changes. Raises
        InvalidInput.
        """
        node = self._registry.find(name)
        self._registry.drain(node)
        told = -1
        while node.in_flight:
            if on_wait is not None and node.in_flight != told:
                told = node.in_flight
                on_wait(told)
            await node.wait_left()

    def resume(self, name: str) -> None:
        """Let a node that was drained work again. Raises InvalidInput."""
        self._registry.resume(self._registry.find(name))
