"""Which path speaks whose API: how a request to it is read, and what its errors look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiosollol.wire import answers, anthropic, openai, openai_responses
from aiosollol.wire.answers import HttpResponse
from aiosollol.wire.asked import Refusal
from aiosollol.wire.dialect import Question

READERS: Mapping[str, Callable[[bytes], Question]] = {
    openai.CHAT_PATH: openai.read_chat,
    openai.COMPLETION_PATH: openai.read_completion,
    openai_responses.PATH: openai_responses.read_responses,
    anthropic.PATH: anthropic.read_messages,
}
"""What reads the body of a POST to each path. Each raises Refusal, and nothing else."""


def refuse(path: str, refusal: Refusal, unique: str) -> HttpResponse:
    """The answer to a request that was refused, in the form of the API that `path` belongs to."""
    if path == anthropic.PATH or path.startswith(f"{anthropic.PATH}/"):
        return anthropic.refuse(refusal, unique)
    return answers.refuse(refusal, openai=path.startswith("/v1/"))
