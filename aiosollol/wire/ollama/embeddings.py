"""Embedding requests and answers for both of Ollama's endpoints, decoded fast.

``/v1/embeddings`` with ``encoding_format: "base64"`` answers little-endian float32 in base64: less
than half the bytes of JSON numbers, and an order of magnitude cheaper to decode. It does not
support ``truncate``, ``options`` or ``keep_alive``; requests with one of them go to ``/api/embed``.
Servers before 0.12.7 ignore the encoding and send numbers, so the answer itself shows its encoding.
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
from operator import eq
from typing import Any

from aiosollol.core.request import EmbedSettings
from aiosollol.core.timings import ServerTimings
from aiosollol.errors import NodeError, ProtocolError, ResponseError
from aiosollol.wire.ollama.client import (
    dump,
    dump_whole,
    load,
    shown,
)
from aiosollol.wire.ollama.timings import read_timings

NATIVE_PATH = "/api/embed"
BASE64_PATH = "/v1/embeddings"

_FLOAT_BYTES = 4
_NOT_FINITE = "answered NaN or a number too large for float32"
_WORDS_FOR_NAN = ("json: unsupported value: ", "embedding contains NaN or Inf values")
"""What Go says of a number that JSON has no word for, and Ollama of a vector of them."""
_COUNTERS = ("prompt_eval_count", "total_duration", "load_duration")
MOST_TOKENS = 2**40
"""More tokens than any request has."""


@lru_cache(maxsize=1)
def _decoder() -> Callable[[Any], bytes]:
    """The fastest available base64 decoder: pybase64 if installed, else the standard library's."""
    try:
        from pybase64 import b64decode
    except ImportError:
        return partial(a2b_base64, strict_mode=True)
    # Validating is faster: without it, characters outside the alphabet are removed first.
    return lambda text: b64decode(text, None, True)  # positional: keywords double the cost


@dataclass(slots=True)
class EmbedAnswer:
    """Vectors of one answer: `floats` holds ``count * dim`` float32 in native byte order.

    tokens: the server's count of prompt tokens for the whole request, 0 if not given.
    is_base64: whether the vectors came in base64.
    node: name of the node that answered.
    timings: only `NATIVE_PATH` reports them.
    """

    floats: memoryview[float]
    count: int
    dim: int
    tokens: int = 0
    is_base64: bool = False
    node: str = ""
    timings: ServerTimings | None = None


def fits_base64(settings: EmbedSettings) -> bool:
    """Whether the endpoint with base64 supports every setting of a request."""
    return settings.truncate is None and settings.options is None and settings.keep_alive is None


def dump_embed(settings: EmbedSettings, texts: Sequence[str]) -> bytes:
    """The body of a request for `texts`; the same bytes serve either endpoint.

    Always sends a list: a server answers ``""`` without a vector, and ``[""]`` with one.
    ``/api/embed`` ignores the encoding field.
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


def longest_answer(count: int, dim: int) -> int:
    """The most bytes that an answer of `count` vectors can have.

    dim: their length, 0 if unknown. A number of JSON takes up to 25 characters.
    """
    return _ELSE_BYTES + max(1, count) * ((dim or _LARGEST_DIM) * 32 + 128)


_ELSE_BYTES = 1 << 20
_LARGEST_DIM = 16_384


def lacks_endpoint(error: NodeError) -> bool:
    """Whether an error says that the server is too old to have the endpoint."""
    return (
        isinstance(error, ResponseError)
        and error.status in (404, 405)
        and ("page not found" in error.message or "method not allowed" in error.message)
    )


def has_nan(error: NodeError) -> bool:
    """Whether an error says that there is NaN in the vectors, or infinity."""
    if isinstance(error, ResponseError):
        return any(words in error.message for words in _WORDS_FOR_NAN)
    return isinstance(error, ProtocolError) and error.detail.startswith(_NOT_FINITE)


def load_embeddings(node: str, body: bytes, count: int) -> EmbedAnswer:
    """Read the answer of either endpoint to a list of `count` texts.

    Raises ProtocolError unless there are `count` vectors of equal length, all finite.
    """
    if (known := _known_form(node, body, count)) is not None:
        texts, rest = known
        floats, dim = _from_base64(node, texts)
        answer = EmbedAnswer(floats, count, dim, _count(node, _usage(rest)), True, node)
    elif (numbers := read_numbers(body, count)) is not None:
        floats, dim, rest = numbers
        tokens = _count(node, rest.get("prompt_eval_count"))
        timings = read_timings(rest)
        answer = EmbedAnswer(floats, count, dim, tokens, node=node, timings=timings)
    else:
        answer = _from_json(node, body, count)
    if not _are_finite(answer.floats):
        at = next(at for at, number in enumerate(answer.floats) if not math.isfinite(number))
        item = at // answer.dim
        raise ProtocolError(node, f"{_NOT_FINITE} (item {item})")
    return answer


def check_one(node: str, body: bytes, dim: int) -> None:
    """Check the answer of any endpoint to one text, which may be empty.

    dim: the expected length of the vector, 0 if unknown. Numbers are counted, not decoded: about
    5 us for 768 of them. Raises ProtocolError.
    """
    start = body.rfind(b"[") + 1
    end = body.find(b"]", start)
    is_plain = 0 < start < end and b'"embedding' in body[max(0, start - 24) : start]
    # No bracket but the vector's and one before it: others are those of further vectors, or of a
    # list of a later version. These two searches end at the head of the answer; counting reads all.
    first = body.find(b"[")
    is_plain = is_plain and first in (start - 1, body.rfind(b"[", 0, start - 1))
    if is_plain and not any(body.find(each, start, end) >= 0 for each in _NOT_NUMBERS):
        found = body.count(b",", start, end) + 1
        if not dim or found == dim:
            return
    found = _length_of_one(node, body)
    if dim and found not in (0, dim):
        raise ProtocolError(node, f"answered a vector of {found} numbers where {dim} were due")


_NOT_NUMBERS = (b'"', b"n", b"N", b"t", b"f")  # of strings, null, NaN, Infinity, true and false


def _length_of_one(node: str, body: bytes) -> int:
    vector = load(node, body).get("embedding")  # of /api/embeddings
    if isinstance(vector, list):
        return _from_lists(node, [vector], body)[1] if vector else 0
    return load_embeddings(node, body, 1).dim


def _from_json(node: str, body: bytes, count: int) -> EmbedAnswer:
    """Read an answer in any format. Raises ProtocolError, which says what is wrong."""
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
    timings = read_timings(answer)
    return EmbedAnswer(floats, count, dim, _count(node, tokens), is_base64, node, timings)


def _count(node: str, tokens: object) -> int:
    if not isinstance(tokens, int):
        return 0
    if not 0 <= tokens < MOST_TOKENS:
        raise ProtocolError(node, f"counted {tokens} tokens")
    return tokens


def _usage(answer: dict[str, Any]) -> object:
    usage = answer.get("usage")
    return usage.get("prompt_tokens") if isinstance(usage, dict) else 0


_HEAD = b'{"object":"list","data":[{"object":"embedding","embedding":"'


@lru_cache(maxsize=64)
def _between(count: int) -> list[bytes]:
    """The bytes after each of `count` vectors in the exact format of Ollama's answers."""
    then = '","index":%d},{"object":"embedding","embedding":"'
    return [(then % index).encode() for index in range(count - 1)] + [
        b'","index":%d}],' % (count - 1)
    ]


def _known_form(
    node: str, body: bytes, count: int
) -> tuple[list[memoryview], dict[str, Any]] | None:
    """The vectors, still in base64, and the other fields of an answer exactly as Ollama writes it.

    Parsing it as JSON costs four times as much as decoding the vectors. Every byte outside the
    vectors is compared with the expected one, so only this exact format matches; for any other,
    returns None, and the answer is parsed as JSON.
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
    """The entries of a ``/v1/embeddings`` answer, sorted by index where they have one."""
    if not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(node, "answered a list of embeddings that are not objects")
    places = [entry.get("index", position) for position, entry in enumerate(entries)]
    in_order = range(len(entries))
    if all(map(eq, places, in_order)):
        return entries
    if any(type(place) is not int for place in places) or sorted(places) != list(in_order):
        raise ProtocolError(node, f"answered embeddings with an invalid index: {places[:8]!r:.100}")
    ordered: list[dict[str, Any]] = [{}] * len(entries)
    for place, entry in zip(places, entries, strict=True):
        ordered[place] = entry
    return ordered


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
            raise ProtocolError(node, f"answered an invalid vector: {error}") from error
    if _has_booleans(body, vectors):
        raise ProtocolError(node, "answered an invalid vector: it contains booleans")
    return memoryview(floats), dim


def _has_booleans(body: bytes, vectors: list[list[float]]) -> bool:
    """Whether `vectors` contains true or false, which Python would take for 1 and 0."""
    # No number has these letters, and searching for one byte is almost free.
    start, end = body.find(b"["), body.rfind(b"]")
    if body.find(b"t", start, end) < 0 and body.find(b"f", start, end) < 0:
        return False
    return any(isinstance(number, bool) for vector in vectors for number in vector)


def _are_finite(floats: memoryview[float]) -> bool:
    """Whether `floats` has neither NaN nor infinity."""
    # Both have an exponent of all ones, so their top byte is 0x7f or 0xff. That byte is rare among
    # finite numbers (1.7e38 and up), and searching for it is much cheaper than testing each number.
    whole = floats.obj if isinstance(floats.obj, bytes) else floats.tobytes()
    top = whole[3::_FLOAT_BYTES] if sys.byteorder == "little" else whole[::_FLOAT_BYTES]
    if b"\x7f" not in top and b"\xff" not in top:
        return True
    return all(map(math.isfinite, floats))


@lru_cache(maxsize=1)
def _parser() -> Any:
    """simdjson's parser class, None if it is not installed."""
    try:
        from simdjson import Parser
    except ImportError:
        return None
    return Parser


def read_numbers(body: bytes, count: int) -> tuple[memoryview[float], int, dict[str, Any]] | None:
    """Floats, their number per vector, and the counts and durations of an ``/api/embed`` answer.

    None unless the answer is exactly `count` vectors of numbers of equal length: the ordinary
    reader then says what is wrong. Also None if numpy is not imported yet: importing it takes
    longer than it saves.
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
        # The parser flattens nested lists, so allow only one bracket per vector.
        if body.count(b"[") != count + 1:
            return None
        doubles = numpy.frombuffer(rows.as_buffer(of_type="d"), dtype=numpy.float64)
        rest = {name: answer.get(name) for name in _COUNTERS}
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    with numpy.errstate(over="ignore"):  # an overflow becomes infinity, which is checked later
        floats = doubles.astype(numpy.float32)
    return memoryview(floats), lengths.pop(), rest
