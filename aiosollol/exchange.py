"""Requests to nodes, one at a time: sent, decoded, counted, learned from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from aiosollol.attempt import Attempt
from aiosollol.core.events import Loading
from aiosollol.core.node import full_name
from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.routing import RouteRequest
from aiosollol.errors import BadRequest, NodeError, NodeTimeout, ProtocolError
from aiosollol.loads import LOAD_SECONDS, Loads
from aiosollol.nodes import Node
from aiosollol.ports import Transport
from aiosollol.registry import Registry
from aiosollol.streams import ReplyStream
from aiosollol.wire import embed as wire
from aiosollol.wire.ollama import dump

Part = TypeVar("Part", bound=ChatReply | GeneratedText)


@dataclass(slots=True)
class EmbedCall:
    """A request, serialised once for however many attempts it takes.

    body: its bytes. fits_base64: whether the endpoint that knows base64 would drop nothing of it.
    tokens: estimated. timeout: seconds for one attempt. dim: the length of vector that is due, 0 if
    that is not known. options: see `core.request.reload_key`. loading: what the body says of how
    the model is to be loaded.
    """

    model: str
    texts: Sequence[str]
    body: bytes
    fits_base64: bool
    tokens: float
    timeout: float
    dim: int = 0
    options: object = None
    loading: Mapping[str, Any] | None = None
    request: RouteRequest = field(init=False)

    def __post_init__(self) -> None:
        self.request = RouteRequest(self.model, self.tokens)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        return wire.NATIVE_PATH, dump({"model": self.model, "input": [], **(self.loading or {})})


@dataclass(slots=True)
class TalkCall(Generic[Part]):
    """A chat or generate, serialised. load: reads its answer. Otherwise as `EmbedCall`."""

    path: str
    model: str
    body: bytes
    load: Callable[[str, bytes], Part]
    tokens: float
    timeout: float
    options: object = None
    loading: Mapping[str, Any] | None = None
    request: RouteRequest = field(init=False)

    def __post_init__(self) -> None:
        self.request = RouteRequest(self.model, self.tokens, kind=self.path.rpartition("/")[2])

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        return GENERATE_PATH, dump({"model": self.model, "stream": False, **(self.loading or {})})


GENERATE_PATH = "/api/generate"


class Exchange:
    """Sends requests to nodes of a registry on which they have a place already (`Node.enter`).

    Whatever becomes of a request, its place is given back, and it is counted exactly once. What
    loads a model is not counted. transport_of: how to reach a node, by name.
    """

    def __init__(
        self, registry: Registry, transport_of: Callable[[str], Transport], loads: Loads
    ) -> None:
        self._registry = registry
        self._transport_of = transport_of
        self._loads = loads

    async def embed(self, call: EmbedCall, node: Node, *, is_live: bool = True) -> wire.EmbedAnswer:
        """The vectors of `call` from one node. Raises NodeError."""
        attempt = Attempt(self._registry, node, call.request, options=call.options, is_live=is_live)
        try:
            if attempt.is_cold:
                await self._prepare(call, attempt)
            answer = await _ask(self._transport_of(node.name), call, node)
            _check_dim(node, answer.dim, call.dim)
        except NodeError as error:
            attempt.failed(error)
            raise
        except BaseException:  # cancelled: the caller left, or a copy was faster
            attempt.cancelled()
            raise
        node.counters.vectors += answer.count
        attempt.answered(_tokens(answer.tokens, call.tokens))
        return answer

    async def converse(self, call: TalkCall[Part], node: Node) -> Part:
        """A whole answer of chat or generate. Raises NodeError."""
        attempt = Attempt(self._registry, node, call.request, options=call.options, is_live=True)
        try:
            if attempt.is_cold:
                await self._prepare(call, attempt)
            transport = self._transport_of(node.name)
            data = await transport.request("POST", call.path, call.body, timeout=call.timeout)
            part = call.load(node.name, data)
        except NodeError as error:
            attempt.failed(error)
            raise
        except BaseException:
            attempt.cancelled()
            raise
        attempt.answered(call.tokens)
        return part

    async def open_stream(
        self,
        call: TalkCall[Part],
        node: Node,
        on_end: Callable[[ReplyStream[Part]], None],
        first_byte_timeout: float,
    ) -> ReplyStream[Part]:
        """A streamed answer whose first part has arrived. Raises NodeError.

        on_end: called once when the stream is over, however it ends. first_byte_timeout: seconds
        until the first part, once the model is loaded.
        """
        attempt = Attempt(self._registry, node, call.request, options=call.options, is_live=True)
        try:
            if attempt.is_cold:
                await self._prepare(call, attempt)
            transport = self._transport_of(node.name)
            response = transport.stream(call.path, call.body, timeout=call.timeout)
        except NodeError as error:
            attempt.failed(error)
            raise
        except BaseException:
            attempt.cancelled()
            raise

        def account(stream: ReplyStream[Part], error: BaseException | None) -> None:
            if error is None:
                attempt.answered(call.tokens)
            elif isinstance(error, NodeError):
                attempt.failed(error)
            elif is_late:
                attempt.failed(NodeTimeout(node.name, late))
            else:
                attempt.cancelled()
            on_end(stream)

        is_late = False
        late = f"sent nothing within {first_byte_timeout:g} s"
        stream = ReplyStream(node.name, response, call.load, account)
        if first_byte_timeout >= call.timeout:
            await stream.open()
            return stream
        with anyio.CancelScope(deadline=anyio.current_time() + first_byte_timeout) as scope:
            try:
                await stream.open()
                return stream
            except BaseException:
                is_late = scope.cancel_called
                raise
        raise NodeTimeout(node.name, late)

    async def _prepare(self, call: EmbedCall | TalkCall[Any], attempt: Attempt) -> None:
        """Let the node load the model before it is asked to compute. Raises NodeError."""
        with contextlib.suppress(BadRequest):  # the request itself will be told what is wrong
            await self.load(call, attempt.node)
        attempt.restart()

    async def load(self, call: EmbedCall | TalkCall[Any], node: Node) -> None:
        """Let `node` load the model of `call`; whoever else wants that waits for the same load.

        Raises NodeError, PoolClosed.
        """
        send = partial(self._send_load, call, node)
        await self._loads.ensure(node.name, call.model, send, call.timeout)

    async def _send_load(self, call: EmbedCall | TalkCall[Any], node: Node) -> None:
        registry, model = self._registry, call.model
        began = registry.clock()
        node.loading.add(full_name(model))
        registry.tell(Loading(began, model, node.name))
        try:
            path, body = call.load_request()
            transport = self._transport_of(node.name)
            await transport.request("POST", path, body, timeout=LOAD_SECONDS)
        finally:
            node.loading.discard(full_name(model))
        now = registry.clock()
        node.learn_load(model, now - began)
        node.warmed(model, call.options)
        registry.tell(Loading(now, model, node.name, now - began))


async def _ask(transport: Transport, call: EmbedCall, node: Node) -> wire.EmbedAnswer:
    count = len(call.texts)
    if call.fits_base64 and node.speaks_base64 is not False:
        try:
            body = await transport.request(
                "POST", wire.BASE64_PATH, call.body, timeout=call.timeout
            )
        except NodeError as error:
            if not wire.lacks_endpoint(error):
                raise
            node.speaks_base64 = False
        else:
            answer = wire.load_embeddings(node.name, body, count)
            if count:
                # A server that does not know the encoding sends numbers; use its own endpoint then.
                node.speaks_base64 = answer.is_base64
            return answer
    body = await transport.request("POST", wire.NATIVE_PATH, call.body, timeout=call.timeout)
    return wire.load_embeddings(node.name, body, count)


def _tokens(counted: int, estimated: float) -> float:
    """What a request is taken to have held: what the server counted, if that can be.

    A server counts what is left of texts that it cut. To learn by that while work is handed out by
    estimates would make a node of long texts look ever slower.
    """
    return counted if estimated / 4 <= counted <= estimated * 4 else estimated


def _check_dim(node: Node, dim: int, due: int) -> None:
    if due and dim != due:
        raise ProtocolError(node.name, f"answered vectors of {dim} numbers where {due} were due")


def promised_dim(node: Node, model: str, dimensions: int | None) -> int:
    """The length of vector that a node's own list of models promises, 0 if it does not."""
    known = node.state.find_model(model)
    if known is None or not known.dim:
        return 0
    return min(dimensions or known.dim, known.dim)
