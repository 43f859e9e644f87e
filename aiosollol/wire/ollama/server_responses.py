"""Server side of Ollama's answers: values to bytes, with its statuses, formats and messages.

The counterpart of `client.py`, used by the fake of `aiosollol.testing`, the embedded node and the
gateway. The reference is what a real server answers, as recorded in tests/captures.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson

from aiosollol.core.model_names import shortest_name
from aiosollol.wire.ollama.go_json import quoted
from aiosollol.wire.ollama.server_requests import Refusal

API_JSON = "application/json; charset=utf-8"
OPENAI_JSON = "application/json"
NDJSON = "application/x-ndjson"
PLAIN = "text/plain"

BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG = "the input length exceeds the context length"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
NAN = "failed to encode response: json: unsupported value: NaN"
RUNNER_GONE = "llama runner process no longer running: 2 "

# When a model with keep_alive "for ever" expires: Go adds its longest duration.
FOR_EVER_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete answer: HTTP status, content type ("" for none) and body."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a server reports about one model.

    size: bytes on disk.
    dim: length of its vectors (`embedding_length`).
    modified_at: a `timestamp`.
    capabilities: "embedding", "completion", "tools", ...
    parameters: parameter count, as Ollama writes it ("22.57M").
    """

    name: str
    digest: str
    size: int
    dim: int
    context_length: int
    modified_at: str
    capabilities: tuple[str, ...] = ("embedding",)
    family: str = "bert"
    parameters: str = "22.57M"
    quantization: str = "F16"
    format: str = "gguf"

    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameters,
            "quantization_level": self.quantization,
        }


def timestamp(nanoseconds: int) -> str:
    """A time since 1970, UTC, in Go's format: ``2026-11-21T09:01:59.127898359Z``."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{moment}{digits}Z"


def seconds_of(moment: str) -> int:
    """A `timestamp` in whole seconds since 1970, the unit of the /v1 endpoints."""
    whole = moment.removesuffix("Z").partition(".")[0]
    return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())


def json_answer(value: Any, *, openai: bool = False, status: int = 200) -> HttpResponse:
    """`value` as the body of an answer, in Ollama's native or OpenAI-compatible API."""
    return HttpResponse(status, OPENAI_JSON if openai else API_JSON, orjson.dumps(value))


# ---- errors


def refuse(error: Refusal, *, openai: bool = False) -> HttpResponse:
    """The answer to a refused request, in the format of the API that was used."""
    if not openai:
        return json_answer({"error": error.message}, status=error.status)
    answer = json_answer(openai_error(error.status, error.message), status=error.status)
    return HttpResponse(error.status, API_JSON if error.is_early else OPENAI_JSON, answer.body)


def openai_error(status: int, message: str) -> dict[str, Any]:
    """An error as the /v1 endpoints write it."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def not_found() -> HttpResponse:
    """The answer for an unknown path."""
    return HttpResponse(404, PLAIN, b"404 page not found")


def method_not_allowed() -> HttpResponse:
    """The answer for a method that the path does not support."""
    return HttpResponse(405, PLAIN, b"405 method not allowed")


def unknown_model(model: str) -> Refusal:
    """The refusal of an unknown model, as most endpoints word it."""
    return Refusal(404, f"model '{model}' not found")


def unknown_model_try_pulling(model: str) -> Refusal:
    """The refusal of an unknown model, as the embedding endpoints word it.

    An empty name fails earlier in Ollama, with another message.
    """
    if not model:
        return unknown_model(model)
    return Refusal(404, f"model {quoted(model)} not found, try pulling it first")


def cannot(model: str, what: str) -> Refusal:
    """The refusal of a model without a capability: `what` is "chat", "generate", ..."""
    return Refusal(400, f"{quoted(model)} does not support {what}")


def cannot_use_tools(model: str) -> Refusal:
    """The refusal of tools. Only this message has the model's name with its registry."""
    name = shortest_name(model)
    path = name if "/" in name else f"library/{name}"
    return Refusal(400, f"registry.ollama.ai/{path} does not support tools")


# ---- the server and its models


def root() -> HttpResponse:
    return HttpResponse(200, "text/plain; charset=utf-8", b"Ollama is running")


def version(text: str) -> HttpResponse:
    return json_answer({"version": text})


def tags(cards: Iterable[ModelCard]) -> HttpResponse:
    """/api/tags: the models on disk."""
    models = [
        {
            "name": card.name,
            "model": card.name,
            "modified_at": card.modified_at,
            "size": card.size,
            "digest": card.digest,
            "details": {
                **card.details(),
                "context_length": card.context_length,
                "embedding_length": card.dim,
            },
            "capabilities": list(card.capabilities),
        }
        for card in cards
    ]
    return json_answer({"models": models})


def ps(loaded: Iterable[tuple[ModelCard, int, str]]) -> HttpResponse:
    """/api/ps: the loaded models, each with its bytes in GPU memory and its expiry time."""
    models = [
        {
            "name": card.name,
            "model": card.name,
            "size": card.size,
            "digest": card.digest,
            "details": card.details(),
            "expires_at": expires_at,
            "size_vram": size_vram,
            "context_length": card.context_length,
        }
        for card, size_vram, expires_at in loaded
    ]
    return json_answer({"models": models})


def show(card: ModelCard) -> HttpResponse:
    """/api/show: one model."""
    family = card.family
    return json_answer(
        {
            "modelfile": f"# Modelfile of {card.name}\nFROM {card.name}\n",
            "template": "{{ .Prompt }}",
            "details": card.details(),
            "model_info": {
                f"{family}.context_length": card.context_length,
                f"{family}.embedding_length": card.dim,
                "general.architecture": family,
            },
            "tensors": [],
            "capabilities": list(card.capabilities),
            "modified_at": card.modified_at,
        }
    )


def openai_models(names_created: Iterable[tuple[str, int]]) -> HttpResponse:
    """/v1/models: each model's name and its time in seconds since 1970, sorted by name."""
    data = [_openai_model(name, created) for name, created in sorted(names_created)]
    return json_answer({"object": "list", "data": data}, openai=True)


def openai_model(name: str, created: int) -> HttpResponse:
    """/v1/models/NAME."""
    return json_answer(_openai_model(name, created), openai=True)


def _openai_model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "library"}


# ---- vectors

Floats = bytes | bytearray | memoryview
"""Float32 in this machine's byte order, vector after vector."""


def json_vectors(floats: Floats, dim: int) -> list[bytes]:
    """Each vector as a JSON array, each float32 in its shortest form, as in Go.

    Without numpy the numbers are longer, but parse to the same float32.
    """
    numpy = _numpy()
    if numpy is not None:
        rows = numpy.frombuffer(floats, dtype=numpy.float32).reshape(-1, dim)
        return [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows]
    flat = memoryview(floats).cast("B").cast("f")
    return [orjson.dumps(flat[at : at + dim].tolist()) for at in range(0, len(flat), dim)]


def base64_vectors(floats: Floats, dim: int) -> list[bytes]:
    """Each vector as a JSON string: little-endian float32 in base64."""
    if sys.byteorder != "little":
        swapped = array("f", memoryview(floats).cast("B").cast("f"))
        swapped.byteswap()
        floats = swapped.tobytes()
    flat = memoryview(floats).cast("B")
    step = 4 * dim
    return [b'"' + b64encode(flat[at : at + step]) + b'"' for at in range(0, len(flat), step)]


def embed(
    model: str,
    vectors: Sequence[bytes],
    *,
    total_duration: int = 0,
    load_duration: int = 0,
    tokens: int = 0,
) -> HttpResponse:
    """/api/embed: `vectors` come from `json_vectors`, durations are nanoseconds.

    Ollama leaves out zeros: without input, all three.
    """
    numbers = {
        "total_duration": total_duration,
        "load_duration": load_duration,
        "prompt_eval_count": tokens,
    }
    value: dict[str, Any] = {"model": model, "embeddings": _fragments(vectors)}
    value.update((key, number) for key, number in numbers.items() if number)
    return json_answer(value)


def embeddings(vector: bytes | None) -> HttpResponse:
    """The legacy /api/embeddings: one vector, or an empty one for an empty prompt."""
    return json_answer({"embedding": orjson.Fragment(vector or b"[]")})


def openai_embeddings(model: str, vectors: Sequence[bytes], *, tokens: int = 0) -> HttpResponse:
    """/v1/embeddings: `vectors` come from `json_vectors` or `base64_vectors`."""
    data = [
        {"object": "embedding", "embedding": orjson.Fragment(vector), "index": index}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    value = {"object": "list", "data": data, "model": model, "usage": usage}
    return json_answer(value, openai=True)


def _fragments(vectors: Sequence[bytes]) -> orjson.Fragment:
    return orjson.Fragment(b"[" + b",".join(vectors) + b"]")


@cache
def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


# ---- chat and generate


@dataclass(frozen=True, slots=True)
class ResponseTimings:
    """The numbers at the end of an answer; durations are nanoseconds."""

    total_duration: int
    load_duration: int
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int

    def fields(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


def chat_part(model: str, created_at: str, content: str) -> dict[str, Any]:
    """One part of a streamed chat."""
    return {
        "model": model,
        "created_at": created_at,
        "message": {"role": "assistant", "content": content},
        "done": False,
    }


def chat_final(
    model: str,
    created_at: str,
    reason: str,
    metrics: ResponseTimings | None = None,
    content: str = "",
) -> dict[str, Any]:
    """The last part of a chat, or the complete answer.

    reason: "stop" or "length"; without metrics, "load" or "unload".
    """
    return {
        "model": model,
        "created_at": created_at,
        "message": {"role": "assistant", "content": content},
        "done": True,
        "done_reason": reason,
        **(metrics.fields() if metrics else {}),
    }


def generate_part(model: str, created_at: str, content: str) -> dict[str, Any]:
    """One part of a streamed completion."""
    return {"model": model, "created_at": created_at, "response": content, "done": False}


def generate_final(
    model: str,
    created_at: str,
    reason: str,
    metrics: ResponseTimings | None = None,
    content: str = "",
    context: Sequence[int] = (),
) -> dict[str, Any]:
    """The last part of a completion, or the complete answer. context: the token ids so far."""
    return {
        "model": model,
        "created_at": created_at,
        "response": content,
        "done": True,
        "done_reason": reason,
        **({"context": list(context)} if context else {}),
        **(metrics.fields() if metrics else {}),
    }


def line(value: Mapping[str, Any]) -> bytes:
    """One line of a stream."""
    return orjson.dumps(value) + b"\n"
