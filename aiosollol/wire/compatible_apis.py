"""For each path of a compatible API: its request reader and its error format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiosollol.wire.anthropic import messages
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse
from aiosollol.wire.openai import chat, responses
from aiosollol.wire.translation import Question

READERS: Mapping[str, Callable[[bytes], Question]] = {
    chat.CHAT_PATH: chat.read_chat,
    chat.COMPLETION_PATH: chat.read_completion,
    responses.PATH: responses.read_responses,
    messages.PATH: messages.read_messages,
}
"""Path -> the function that reads the body of a POST to it. Each raises only Refusal."""


def refuse(path: str, refusal: Refusal, unique: str) -> HttpResponse:
    """The answer to a refused request, in the format of the API that `path` belongs to."""
    if path == messages.PATH or path.startswith(f"{messages.PATH}/"):
        return messages.refuse(refusal, unique)
    return server_responses.refuse(refusal, openai=path.startswith("/v1/"))
