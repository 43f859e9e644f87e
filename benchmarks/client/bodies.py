"""The answers that the benchmarks' servers give: bytes made once, as a real server would."""

from __future__ import annotations

import json
import random
from array import array
from base64 import b64encode
from functools import cache

MODEL = "nomic-embed-text"
CHAT_MODEL = "llama3.2"
TOKENS = 256
"""Parts of a streamed chat answer, without the last line."""
TOKENS_PER_TEXT = 27
"""Of 100 characters, 4 a token and 2 special ones: what a server counts is what sizes chunks."""


@cache
def vector(dim: int) -> array[float]:
    """The vector that every text has: float32, about of length 1."""
    rng = random.Random(dim)
    return array("f", [rng.gauss(0.0, dim**-0.5) for _ in range(dim)])


def as_text(dim: int) -> bytes:
    return b"[" + b",".join(b"%.9g" % number for number in vector(dim)) + b"]"


def native(count: int, dim: int, tokens: int = TOKENS_PER_TEXT) -> bytes:
    """The answer of ``/api/embed``. tokens: per text, as the server counts them."""
    vectors = b",".join([as_text(dim)] * count)
    return b'{"model":"%s","embeddings":[%s],"total_duration":1,"load_duration":1,' % (
        MODEL.encode(),
        vectors,
    ) + b'"prompt_eval_count":%d}' % (tokens * count)


def openai(count: int, dim: int, tokens: int = TOKENS_PER_TEXT, *, is_base64: bool = True) -> bytes:
    """The answer of ``/v1/embeddings``, in base64 or numbers."""
    one = b'"%s"' % b64encode(vector(dim).tobytes()) if is_base64 else as_text(dim)
    data = b",".join(
        b'{"object":"embedding","embedding":%s,"index":%d}' % (one, index) for index in range(count)
    )
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens * count, tokens * count)
    return b'{"object":"list","data":[%s],"model":"%s","usage":%s}\n' % (
        data,
        MODEL.encode(),
        usage,
    )


def chat_lines(tokens: int = TOKENS) -> list[bytes]:
    """The lines of a streamed answer of ``/api/chat``."""
    head = {"model": CHAT_MODEL, "created_at": "2026-01-01T00:00:00.123456789Z"}
    lines = [
        {**head, "message": {"role": "assistant", "content": f" word{number}"}, "done": False}
        for number in range(tokens)
    ]
    last = {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "total_duration": 2_000_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 30_000_000,
        "eval_count": tokens,
        "eval_duration": 1_500_000_000,
    }
    lines.append({**head, **last})
    return [json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines]


def fixed() -> dict[str, bytes]:
    """What a node answers to questions about itself, by path."""
    details = {"families": ["nomic-bert"], "parameter_size": "137M", "quantization_level": "F16"}
    models = [
        {
            "name": f"{name}:latest",
            "model": f"{name}:latest",
            "modified_at": "2026-01-01T00:00:00Z",
            "size": 274_302_450,
            "digest": f"{number:064x}",
            "details": details,
        }
        for number, name in enumerate((MODEL, CHAT_MODEL))
    ]
    loaded = [{**model, "size_vram": model["size"]} for model in models]
    return {
        "/": b"Ollama is running",
        "/api/version": b'{"version":"0.13.0"}',
        "/api/tags": json.dumps({"models": models}).encode(),
        "/api/ps": json.dumps({"models": loaded}).encode(),
    }
