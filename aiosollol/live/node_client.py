"""Sends one request to one node, decodes the answer, and records the outcome."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import Loading
from aiosollol.core.model_names import full_name
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.errors import (
    BadRequest,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
)
from aiosollol.live.attempt import Attempt
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.model_loader import LOAD_SECONDS, Load, ModelLoader
from aiosollol.live.streaming import Part, ReplyStream
from aiosollol.ports import CANCELLED, Span, Trace, Tracing, Transport
from aiosollol.wire.ollama import embeddings as wire
from aiosollol.wire.ollama.client import load as load_json

_FEW_TEXTS = 8  # for which JSON numbers cost little more than base64


class NodeClient:
    """Sends requests to nodes on which they already have a slot (`Node.try_enter`).

    With any outcome the slot is given back, and the request is counted exactly once. Model loads
    are not counted.

    transport_of: returns the transport to a node, by name.
    tracing: traces each request; None for no traces.
    """

    def __init__(
        self,
        cluster: ClusterState,
        transport_of: Callable[[str], Transport],
        loads: ModelLoader,
        tracing: Tracing | None = None,
    ) -> None:
        self._cluster = cluster
        self._transport_of = transport_of
        self._loads = loads
        self._tracing = tracing

    def trace(self) -> Trace | None:
        """The trace context of the current task; None if there is none.

        Call it in the caller's own task: the task of a hedged attempt has no context.
        """
        return None if self._tracing is None else self._tracing.current()

    async def embed(
        self,
        call: EmbedCall,
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        timeout: float,
        *,
        dim: int = 0,
        is_live: bool = True,
    ) -> wire.EmbedAnswer:
        """The vectors of `call` from one node. Raises NodeError, PoolClosed.

        request: the call as it was routed.
        trace: the trace of the caller.
        timeout: seconds for this attempt.
        dim: expected dimensions of the vectors from this node, 0 if unknown.
        is_live: see `Attempt`.
        """
        attempt, load, headers = self._begin(call, node, request, trace, is_live=is_live)
        with attempt:
            if load is not None:
                left = await self._loaded(load, timeout, attempt)
                timeout = left if is_live else timeout
            # The first answer may include a load that was not foreseen.
            is_timed = load is None and attempt.is_first
            answer = await _ask(
                self._way_to(node), call, node, timeout, headers, dim, is_timed=is_timed
            )
            _check_dim(node, answer.dim, dim)
        attempt.answered(
            _tokens(answer.tokens, call.tokens),
            tokens=answer.tokens,
            vectors=answer.count,
            timings=answer.timings,
        )
        return answer

    async def sample(self, call: EmbedCall, node: Node, timeout: float) -> wire.EmbedAnswer:
        """As `embed`, but neither counted nor learned from, and without a load request.

        The slot stays the caller's. Raises NodeError, PoolClosed.
        """
        dim = promised_dim(node, call.model, call.dimensions)
        return await _ask(self._way_to(node), call, node, timeout, None, dim)

    async def converse(
        self,
        call: TalkCall[Part],
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        timeout: float,
    ) -> Part:
        """A whole answer of chat or generate. Arguments are those of `embed`.

        Raises NodeError, PoolClosed.
        """
        attempt, load, headers = self._begin(call, node, request, trace, is_live=True)
        with attempt:
            if load is not None:
                timeout = await self._loaded(load, timeout, attempt)
            data = await self._way_to(node).request(
                "POST", call.path, call.body, timeout=timeout, headers=headers
            )
            part = call.load(node.name, data)
            if call.kind == "embed":
                call.check(part, promised_dim(node, call.model, call.dimensions))
        timings = call.timings_of(part)
        tokens = call.tokens_of(part) if timings is None else timings.tokens
        attempt.answered(call.tokens, tokens=tokens, timings=timings)
        return part

    async def open_stream(
        self,
        call: TalkCall[Part],
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        timeout: float,
        *,
        on_end: Callable[[ReplyStream[Part]], None],
        first_byte_timeout: float,
        stall_timeout: float,
    ) -> ReplyStream[Part]:
        """A streamed answer whose first part has arrived. Raises NodeError, PoolClosed.

        on_end: called once when the stream ends, with any outcome.
        first_byte_timeout: seconds until the first part, once the model is loaded.
        stall_timeout: seconds that a later part may take.
        The other arguments are those of `embed`.
        """
        attempt, load, headers = self._begin(call, node, request, trace, is_live=True)
        with attempt:
            if load is not None:
                timeout = await self._loaded(load, timeout, attempt)
            response = self._way_to(node).stream(
                call.path,
                call.body,
                timeout=timeout,
                headers=headers,
                stall_timeout=stall_timeout,
            )
        first_part = anyio.CancelScope()
        late = NodeTimeout(node.name, f"sent nothing within {first_byte_timeout:g} s")

        def account(stream: ReplyStream[Part], error: BaseException | None) -> None:
            if error is None:
                timings = stream.timings or attempt.timings_of_parts(stream.parts)
                attempt.answered(call.tokens, tokens=stream.tokens, timings=timings)
            elif first_part.cancel_called and not isinstance(error, NodeError):
                attempt.failed(late)
            else:
                attempt.close(error)
            on_end(stream)

        stream = call.stream(node.name, response, account)
        if first_byte_timeout >= timeout:
            await stream.open()
        else:
            first_part.deadline = anyio.current_time() + first_byte_timeout
            with first_part:
                await stream.open()
            if first_part.cancelled_caught:
                raise late
        attempt.began()
        return stream

    def _begin(
        self,
        call: EmbedCall | TalkCall[Any],
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        *,
        is_live: bool,
    ) -> tuple[Attempt, Load | None, Mapping[str, str] | None]:
        """The attempt, the load that it must wait for, and its trace headers."""
        load = self._load_for(call, node, trace)
        span, headers = _follow(trace, request, node)
        attempt = Attempt(
            self._cluster,
            node,
            request,
            options=call.options,
            is_cold=load is not None,
            is_live=is_live,
            span=span,
        )
        return attempt, load, headers

    def _way_to(self, node: Node) -> Transport:
        """The transport to `node`. Raises NodeUnreachable if it was removed in the meantime."""
        # Compare the node itself: another one may have been added under its name.
        if node.name in self._cluster and self._cluster[node.name] is node:
            return self._transport_of(node.name)
        raise NodeUnreachable(node.name, "was removed")

    # Loading.

    async def load(self, node: Node, *calls: EmbedCall | TalkCall[Any]) -> None:
        """Load a model on `node`. Callers that need the same load share one request.

        calls: requests for the model; the first one whose load request the model supports is used.
        Raises NodeError, PoolClosed.
        """
        await self._start_load(node, calls, self.trace()).wait(LOAD_SECONDS)

    def _load_for(
        self, call: EmbedCall | TalkCall[Any], node: Node, trace: Trace | None
    ) -> Load | None:
        """The load that a request must wait for; None if the model is loaded.

        Start it before the attempt, so that the load is ahead of it in the backlog.
        """
        if not node.is_cold(call.model, call.options):
            return None
        return self._start_load(node, (call,), trace)

    async def _loaded(self, load: Load, timeout: float, attempt: Attempt) -> float:
        """Wait for `load`, and return what is left of `timeout`. Raises NodeError, PoolClosed."""
        began = self._cluster.clock()
        with contextlib.suppress(BadRequest):  # the request itself will raise it
            await load.wait(timeout, partial(self._hung_after, attempt.node, load.model))
        attempt.restart()
        return max(1e-3, timeout - (self._cluster.clock() - began))

    def _hung_after(self, node: Node, model: str) -> float:
        """Seconds after which a request leaves a load for another node; infinity without one."""
        has_other = any(
            other is not node and not other.is_down and other.has_model(model)
            for other in self._cluster
        )
        return node.hung_load_seconds(model) if has_other else math.inf

    def _start_load(
        self, node: Node, calls: Sequence[EmbedCall | TalkCall[Any]], trace: Trace | None
    ) -> Load:
        call, now = calls[0], self._cluster.clock()
        name = full_name(call.model)
        key = (node, name, call.options)
        load = self._loads.find(key)
        if load is None:
            seconds = node.begin_load(name, now)
            load = Load(node.name, call.model, partial(self._end_load, node, name, seconds))
            load.bound(node.hung_load_seconds(name))
            self._loads.start(key, load, partial(self._send_load, load, node, calls, trace))
        return load

    def _end_load(self, node: Node, name: str, seconds: float) -> None:
        node.end_load(name, seconds, self._cluster.clock())

    async def _send_load(
        self,
        load: Load,
        node: Node,
        calls: Sequence[EmbedCall | TalkCall[Any]],
        trace: Trace | None,
    ) -> None:
        cluster, model = self._cluster, calls[0].model
        began = cluster.clock()
        cluster.tell(Loading(began, model, node.name))
        span, headers = _follow(trace, calls[0].request()._replace(kind="load"), node)
        problem = CANCELLED
        try:
            with load.scope:
                await self._request_load(node, calls, headers)
            if load.scope.cancelled_caught:
                seconds = cluster.clock() - began
                raise NodeTimeout(node.name, f"was still loading {model} after {seconds:.0f} s")
            problem = ""
        except NodeError as error:
            problem = type(error).__name__
            now = cluster.clock()
            cluster.tell(Loading(now, model, node.name, now - began, str(error)))
            raise
        finally:
            if span is not None:
                span.end(problem)
        now = cluster.clock()
        node.learn_load(model, now - began)
        node.warmed(model, calls[0].options)
        for other in self._loads.of(model):
            if other is not load and other.node in cluster:
                other.bound(cluster[other.node].hung_load_seconds(model))
        cluster.tell(Loading(now, model, node.name, now - began))

    async def _request_load(
        self,
        node: Node,
        calls: Sequence[EmbedCall | TalkCall[Any]],
        headers: Mapping[str, str] | None,
    ) -> None:
        for call in calls:
            path, body = call.load_request()
            try:
                way = self._way_to(node)
                data = await way.request("POST", path, body, timeout=LOAD_SECONDS, headers=headers)
                load_json(node.name, data)  # a web page is no load
                return
            except BadRequest:
                if call is calls[-1]:
                    raise


def _follow(
    trace: Trace | None, request: RouteRequest, node: Node
) -> tuple[Span | None, Mapping[str, str] | None]:
    """The span of an attempt, and its trace headers; None without a trace."""
    if trace is None:
        return None, None
    span = trace.attempt(request, node.spec)
    return span, span.headers


async def _ask(
    transport: Transport,
    call: EmbedCall,
    node: Node,
    timeout: float,
    headers: Mapping[str, str] | None,
    dim: int,
    *,
    is_timed: bool = False,
) -> wire.EmbedAnswer:
    """The answer of one node. is_timed: whether the server should report its timings."""
    count = len(call.texts)
    most = wire.longest_answer(count, dim)
    # Only the native endpoint reports whether it had to load the model.
    is_timed = is_timed and count <= _FEW_TEXTS
    if call.fits_base64 and node.speaks_base64 is not False and not is_timed:
        try:
            body = await transport.request(
                "POST", wire.BASE64_PATH, call.body, timeout=timeout, headers=headers, most=most
            )
        except NodeError as error:
            if not wire.lacks_endpoint(error):
                raise
            node.learn_base64(False)
        else:
            answer = wire.load_embeddings(node.name, body, count)
            if count and node.speaks_base64 is not answer.is_base64:
                # A server without base64 sends numbers; use its native endpoint from now on.
                node.learn_base64(answer.is_base64)
            return answer
    body = await transport.request(
        "POST", wire.NATIVE_PATH, call.body, timeout=timeout, headers=headers, most=most
    )
    return wire.load_embeddings(node.name, body, count)


def _tokens(counted: int, estimated: float) -> float:
    """The tokens of a request: as counted by the server, if that is plausible.

    A server counts truncated texts by what is left of them. Learning from that count while work is
    assigned by estimates would make a node with long texts look ever slower.
    """
    return counted if estimated / 4 <= counted <= estimated * 4 else estimated


def _check_dim(node: Node, dim: int, due: int) -> None:
    if due and dim != due:
        raise ProtocolError(node.name, f"answered vectors of {dim} numbers where {due} were due")


def promised_dim(node: Node, model: str, dimensions: int | None) -> int:
    """The dimensions of vectors according to the node's own list of models, 0 if unknown."""
    known = node.state.find_model(model)
    if known is None or not known.dim:
        return 0
    return min(dimensions or known.dim, known.dim)
