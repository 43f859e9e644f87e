"""One embedding request to one node: sent, decoded, counted, learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiosollol.errors import NodeError, ProtocolError
from aiosollol.ports import Transport
from aiosollol.registry import Node, Registry
from aiosollol.wire import embed as wire


@dataclass(slots=True)
class EmbedCall:
    """A request, serialised once for however many attempts it takes.

    body: its bytes. fits_base64: whether the endpoint that knows base64 would drop nothing of it.
    tokens: estimated. dim: the length of vector that is due, 0 if that is not known.
    timeout: seconds for one attempt.
    """

    model: str
    texts: Sequence[str]
    body: bytes
    fits_base64: bool
    tokens: float
    timeout: float
    dim: int = 0


async def embed_on(
    registry: Registry, transport_of: Callable[[str], Transport], call: EmbedCall, node: Node
) -> wire.EmbedAnswer:
    """The vectors of `call` from one node. Raises NodeError.

    Every way out is counted exactly once, cancellation included.
    """
    await node.enter()
    sent_at = registry.clock()
    try:
        answer = await _ask(transport_of(node.name), call, node)
        _check_dim(node, answer.dim, call.dim)
    except NodeError as error:
        node.fail(error, registry.clock())
        registry.failed(node, error, call.model)
        raise
    except BaseException:  # cancelled: the caller left, or a copy was faster
        node.cancel(registry.clock())
        raise
    finally:
        node.leave()
    now = registry.clock()
    node.learn(call.model, _tokens(answer.tokens, call.tokens), sent_at, now)
    node.succeed(sent_at, now)
    node.counters.vectors += answer.count
    registry.answered(node)
    return answer


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
