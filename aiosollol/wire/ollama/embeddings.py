"""Embedding requests and answers, over both of Ollama's endpoints, decoded without detours.

``/v1/embeddings`` with ``encoding_format: "base64"`` answers little-endian float32 in base64: less
than half the bytes of JSON numbers, and an order of magnitude cheaper to decode. It knows no
``truncate``, ``options`` or ``keep_alive``; requests with one of them go to ``/api/embed``. Servers
before 0.12.7 ignore the encoding and send numbers, so what an answer is is told by its looks.
"""

from __future__ import annotations

import math
import sys
from array import array
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from aiosollol.core.request import EmbedSettings
from aiosollol.errors import NodeError, ProtocolError, ResponseError
from aiosollol.wire.ollama.client import (
    dump,
    dump_whole,
    load,
    shown,
)

NATIVE_PATH = "/api/embed"
BASE64_PATH = "/v1/embeddings"

_FLOAT_BYTES = 4


@lru_cache(maxsize=1)
def _decoder() -> Callable[[Any], bytes]:
    """The fastest base64 decoder there is: pybase64 if it is installed, else Python's own."""
    try:
        from pybase64 import b64decode
    except ImportError:
        return partial(a2b_base64, strict_mode=True)
    # Validating is the fast way: the other one first drops what is not of the alphabet.
    return lambda text: b64decode(text, None, True)  # by position: keywords cost as much again


@dataclass(slots=True)
class EmbedAnswer:
    """Vectors of one answer: `floats` holds ``count * dim`` float32 in native byte order.

    tokens: the server's count of prompt tokens for the whole request, 0 if it did not say.
    is_base64: whether they came in base64. node: who gave it, by name.
    """

    floats: memoryview[float]
    count: int
    dim: int
    tokens: int = 0
    is_base64: bool = False
    node: str = ""


def fits_base64(settings: EmbedSettings) -> bool:
    """Whether the endpoint that knows base64 would drop nothing of a request."""
    return settings.truncate is None and settings.options is None and settings.keep_alive is None


def dump_embed(settings: EmbedSettings, texts: Sequence[str]) -> bytes:
    """The body of a request for `texts`; the same bytes serve either endpoint.

    Always a list: to the string ``""`` a server answers no vector, to ``[""]`` one. ``/api/embed``
    ignores the field that it does not know.
    """
    if fits_base64(settings):
        payload = {"model": settings.model, "input": texts, "encoding_format": "base64"}
        if settings.dimensions is None:
            return dump_whole(payload)
        return dump_whole({**payload, "dimensions": settings.dimensions})
    return dump(
        {
            "model": settings.model,
            "input": texts,
            "dimensions": settings.dimensions,
            "truncate": settings.truncate,
            "options": settings.options,
            "keep_alive": settings.keep_alive,
        }
    )


def lacks_endpoint(error: NodeError) -> bool:
    """Whether an error says that the server has no such endpoint: it is older than that."""
    return (
        isinstance(error, ResponseError)
        and error.status in (404, 405)
        and ("page not found" in error.message or "method not allowed" in error.message)
    )


def load_embeddings(node: str, body: bytes, count: int) -> EmbedAnswer:
    """Read the answer of either endpoint to a list of `count` texts.

    Raises ProtocolError if there are not `count` vectors, of one length, all finite.
    """
    if (known := _known_form(node, body, count)) is not None:
        texts, rest = known
        floats, dim = _from_base64(node, texts)
        answer = EmbedAnswer(floats, count, dim, _count(_usage(rest)), True, node)
    elif (numbers := read_numbers(body, count)) is not None:
        floats, dim, tokens = numbers
        answer = EmbedAnswer(floats, count, dim, _count(tokens), node=node)
    else:
        answer = _from_json(node, body, count)
    if not _are_finite(answer.floats):
        at = next(at for at, number in enumerate(answer.floats) if not math.isfinite(number))
        item = at // answer.dim
        raise ProtocolError(node, f"answered NaN or a number too large for float32 (item {item})")
    return answer


def _from_json(node: str, body: bytes, count: int) -> EmbedAnswer:
    """Read an answer of any form, and say what is wrong with one that has none."""
    answer = load(node, body)
    vectors: Any
    if isinstance(entries := answer.get("data"), list):
        vectors = [entry.get("embedding") for entry in _in_order(node, entries)]
        tokens = _usage(answer)
    else:
        vectors, tokens = answer.get("embeddings"), answer.get("prompt_eval_count")
    if not isinstance(vectors, list):
        raise ProtocolError(node, f"answered {shown(body)}, which has no embeddings")
    if len(vectors) != count:
        raise ProtocolError(node, f"answered {len(vectors)} vectors to {count} texts")
    is_base64 = isinstance(entries, list) and count > 0 and isinstance(vectors[0], str)
    floats, dim = _from_base64(node, vectors) if is_base64 else _from_lists(node, vectors, body)
    return EmbedAnswer(floats, count, dim, _count(tokens), is_base64, node)


def _count(tokens: object) -> int:
    return tokens if isinstance(tokens, int) else 0


def _usage(answer: dict[str, Any]) -> object:
    usage = answer.get("usage")
    return usage.get("prompt_tokens") if isinstance(usage, dict) else 0


_HEAD = b'{"object":"list","data":[{"object":"embedding","embedding":"'


@lru_cache(maxsize=64)
def _between(count: int) -> list[bytes]:
    """What stands after each of `count` vectors in the form that Ollama's answers have."""
    then = '","index":%d},{"object":"embedding","embedding":"'
    return [(then % index).encode() for index in range(count - 1)] + [
        b'","index":%d}],' % (count - 1)
    ]


def _known_form(
    node: str, body: bytes, count: int
) -> tuple[list[memoryview], dict[str, Any]] | None:
    """The vectors of an answer as Ollama writes it, still in base64, and all else.

    To read it as JSON costs four times as much as to decode the vectors. Each byte that is not of a
    vector is compared with what must stand there, so that only this very form is recognised; for
    any other None is returned, and the answer is read as JSON.
    """
    at = len(_HEAD)
    length = body.find(b'"', at) - at
    if length <= 0 or not count or not body.startswith(_HEAD):
        return None
    view = memoryview(body)
    texts = []
    for tail in _between(count):
        end = at + length
        if not body.startswith(tail, end):
            return None
        texts.append(view[at:end])
        at = end + len(tail)
    rest = load(node, b"{" + body[at:])
    return None if "data" in rest else (texts, rest)


def _in_order(node: str, entries: list[Any]) -> list[dict[str, Any]]:
    """The entries of an answer of ``/v1/embeddings``, by their index where they have one."""
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ProtocolError(node, "answered a list of embeddings that is not of objects")
        if entry.get("index", position) != position:
            try:
                return sorted(entries, key=lambda entry: int(entry["index"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ProtocolError(node, "answered embeddings with a broken index") from error
    return entries


def _from_base64(node: str, vectors: list[Any]) -> tuple[memoryview[float], int]:
    try:
        decode = _decoder()
        rows = [decode(vector) for vector in vectors]
    except (Base64Error, TypeError, ValueError) as error:
        raise ProtocolError(node, f"answered a vector that is not base64: {error}") from error
    size = len(rows[0])
    joined = rows[0] if len(rows) == 1 else b"".join(rows)
    if not size or size % _FLOAT_BYTES or (len(rows) > 1 and set(map(len, rows)) != {size}):
        raise ProtocolError(node, "answered vectors of unequal length")
    if sys.byteorder == "big":
        floats = array("f", joined)
        floats.byteswap()
        return memoryview(floats), size // _FLOAT_BYTES
    return memoryview(joined).cast("f"), size // _FLOAT_BYTES


def _from_lists(node: str, vectors: list[Any], body: bytes) -> tuple[memoryview[float], int]:
    floats = array("f")
    dim = len(vectors[0]) if vectors and isinstance(vectors[0], list) else 0
    for position, vector in enumerate(vectors):
        if not isinstance(vector, list) or len(vector) != dim or not dim:
            raise ProtocolError(node, f"answered vectors of unequal length (item {position})")
        try:
            floats.fromlist(vector)
        except (TypeError, OverflowError) as error:
            raise ProtocolError(node, f"answered a vector that is no vector: {error}") from error
    if _has_booleans(body, vectors):
        raise ProtocolError(node, "answered a vector that is no vector: it has booleans in it")
    return memoryview(floats), dim


def _has_booleans(body: bytes, vectors: list[list[float]]) -> bool:
    """Whether true or false stands in `vectors`, where Python would take them for 1 and 0."""
    # No number has their letters, and to look for one byte costs next to nothing.
    start, end = body.find(b"["), body.rfind(b"]")
    if body.find(b"t", start, end) < 0 and body.find(b"f", start, end) < 0:
        return False
    return any(isinstance(number, bool) for vector in vectors for number in vector)


def _are_finite(floats: memoryview[float]) -> bool:
    """Whether there is neither NaN nor infinity among `floats`."""
    # Both have an exponent of ones, so their top byte is 0x7f or 0xff. That byte is rare among
    # sound numbers (1.7e38 and up), and looking for it costs a fraction of looking at each number.
    whole = floats.obj if isinstance(floats.obj, bytes) else floats.tobytes()
    top = whole[3::_FLOAT_BYTES] if sys.byteorder == "little" else whole[::_FLOAT_BYTES]
    if b"\x7f" not in top and b"\xff" not in top:
        return True
    return all(map(math.isfinite, floats))


@lru_cache(maxsize=1)
def _parser() -> Any:
    """The class of simdjson's parsers, None if it is not installed."""
    try:
        from simdjson import Parser
    except ImportError:
        return None
    return Parser


def read_numbers(body: bytes, count: int) -> tuple[memoryview[float], int, object] | None:
    """Floats, their number per vector, and the token count of an answer of ``/api/embed``.

    None for whatever is not plainly `count` vectors of numbers, of one length: then the answer is
    read in the ordinary way, which says what is wrong. Also if numpy was not imported by anybody
    yet: that takes longer than it saves.
    """
    numpy = sys.modules.get("numpy")
    parser = _parser() if numpy is not None else None
    if parser is None or numpy is None or not count:
        return None
    try:
        answer = parser().parse(body)
        rows = answer["embeddings"]
        lengths = {len(row) for row in rows}
        if len(rows) != count or len(lengths) != 1 or not max(lengths):
            return None
        # It flattens lists in lists, however deep: there must be no bracket but one per vector.
        if body.count(b"[") != count + 1:
            return None
        doubles = numpy.frombuffer(rows.as_buffer(of_type="d"), dtype=numpy.float64)
        tokens = answer.get("prompt_eval_count")
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    with numpy.errstate(over="ignore"):  # what is too large becomes infinite, and is looked for
        floats = doubles.astype(numpy.float32)
    return memoryview(floats), lengths.pop(), tokens
