"""OpenAI's ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models`` on top of Ollama's API.

Requests and answers are converted as in Ollama's own compatibility layer (openai/openai.go;
examples in tests/captures), except that unsupported features (`n`, several prompts) are refused
instead of ignored, and `max_completion_tokens`, `echo` and `tool_choice: "none"` are respected.
``/v1/embeddings`` is read by `server_requests.read_openai_embeddings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiosollol.wire.json_fields import Fields, early
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse
from aiosollol.wire.openai.chat_stream import (
    ChatEvents,
    CompletionEvents,
    chat_id,
    completion_id,
    tool_calls,
    usage,
)
from aiosollol.wire.openai.messages import read_messages, read_tools, think_of
from aiosollol.wire.translation import (
    Events,
    Question,
    Stamp,
    calls_of,
    dumps,
    message_of,
    text_of,
)

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"


def refuse(refusal: Refusal) -> HttpResponse:
    """An error in OpenAI's format."""
    return server_responses.refuse(refusal, openai=True)


# ---- chat


class ChatQuestion(Question):
    """A request to ``/v1/chat/completions``, converted to ``/api/chat``."""

    def __init__(self, payload: dict[str, Any], *, include_usage: bool = False) -> None:
        super().__init__("/api/chat", payload)
        self.include_usage = include_usage

    def answer(self, reply: Mapping[str, Any], stamp: Stamp) -> HttpResponse:
        message = message_of(reply)
        calls = calls_of(message, stamp.unique)
        said: dict[str, Any] = {
            "role": text_of(message, "role") or "assistant",
            "content": text_of(message, "content"),
        }
        said |= _given("reasoning", text_of(message, "thinking"))
        said |= _given("tool_calls", tool_calls(calls))
        reason = text_of(reply, "done_reason")
        reason = "tool_calls" if calls and reason == "stop" else reason
        choice = {"index": 0, "message": said, "finish_reason": reason or None}
        if reply.get("logprobs"):
            choice["logprobs"] = {"content": reply["logprobs"]}
        head = _head(chat_id(stamp), "chat.completion", stamp, reply)
        return _answer({**head, "choices": [choice], "usage": usage(reply)})

    def events(self, stamp: Stamp) -> Events:
        return ChatEvents(stamp, include_usage=self.include_usage)


def read_chat(body: bytes) -> ChatQuestion:
    """Read a request to ``/v1/chat/completions``. Raises Refusal."""
    fields = Fields.read(body, "ChatCompletionRequest")
    model, stream = fields.text("model"), fields.boolean("stream")
    entries = fields.each("messages")
    if not entries:
        raise early("[] is too short - 'messages'")
    _refuse_many(fields, "n")
    reasoning = fields.inside("reasoning")
    effort = reasoning.text("effort") if reasoning else fields.text("reasoning_effort")
    tools = read_tools(fields.each("tools"))
    if fields.any("tool_choice") == "none":
        tools = []
    limit = fields.integer("max_completion_tokens")
    payload = {
        "model": model,
        "messages": read_messages(entries),
        "stream": stream,
        **_given("format", _format(fields)),
        "options": _options(
            fields,
            num_predict=fields.integer("max_tokens") if limit is None else limit,
            frequency_penalty=fields.number("frequency_penalty"),
            presence_penalty=fields.number("presence_penalty"),
        ),
        **_given("tools", tools),
        **({} if (think := think_of(effort)) is None else {"think": think}),
        **_given("logprobs", fields.boolean("logprobs")),
        **_given("top_logprobs", fields.integer("top_logprobs")),
    }
    return ChatQuestion(payload, include_usage=_wants_usage(fields))


def _format(fields: Fields) -> str | dict[str, Any] | None:
    """The required format of the answer: any JSON, or a schema."""
    wanted = fields.inside("response_format")
    kind = wanted.text("type").strip().lower() if wanted else ""
    if wanted is None or kind in ("", "text"):
        return None
    if kind == "json_object":
        return "json"
    if kind != "json_schema":
        raise early(
            f"Invalid value for 'response_format.type' = {kind}. "
            "Supported values: ['text', 'json_object', 'json_schema']."
        )
    schema = wanted.inside("json_schema")
    return schema.mapping("schema") if schema else None


# ---- completions


class CompletionQuestion(Question):
    """A request to ``/v1/completions``, converted to ``/api/generate``.

    echo: text to begin the answer with: the prompt if the client asked for `echo`, else "".
    """

    def __init__(
        self, payload: dict[str, Any], *, include_usage: bool = False, echo: str = ""
    ) -> None:
        super().__init__("/api/generate", payload)
        self.include_usage = include_usage
        self.echo = echo

    def answer(self, reply: Mapping[str, Any], stamp: Stamp) -> HttpResponse:
        choice = {
            "text": self.echo + text_of(reply, "response"),
            "index": 0,
            "finish_reason": text_of(reply, "done_reason") or None,
        }
        head = _head(completion_id(stamp), "text_completion", stamp, reply)
        return _answer({**head, "choices": [choice], "usage": usage(reply)})

    def events(self, stamp: Stamp) -> Events:
        return CompletionEvents(stamp, include_usage=self.include_usage, echo=self.echo)


def read_completion(body: bytes) -> CompletionQuestion:
    """Read a request to ``/v1/completions``. Raises Refusal."""
    fields = Fields.read(body, "CompletionRequest")
    model, prompt, stream = fields.text("model"), _prompt(fields), fields.boolean("stream")
    _refuse_many(fields, "n")
    _refuse_many(fields, "best_of")
    top_logprobs = fields.integer("logprobs") or 0
    payload = {
        "model": model,
        "prompt": prompt,
        **_given("suffix", fields.text("suffix")),
        "stream": stream,
        "options": _options(
            fields,
            num_predict=fields.integer("max_tokens"),
            frequency_penalty=fields.number("frequency_penalty") or 0,
            presence_penalty=fields.number("presence_penalty") or 0,
        ),
        **({"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs > 0 else {}),
    }
    echo = prompt if fields.boolean("echo") else ""
    return CompletionQuestion(payload, include_usage=_wants_usage(fields), echo=echo)


def _prompt(fields: Fields) -> str:
    """The only prompt; many clients send it in a list."""
    prompt = fields.any("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        raise early("only one prompt per request is supported, 'prompt' has several")
    return fields.text("prompt")


# ---- models


def models(entries: Iterable[Mapping[str, Any]]) -> HttpResponse:
    """``/v1/models``, from the entries of ``/api/tags``, sorted by name."""
    named = {text_of(entry, "model") or text_of(entry, "name"): entry for entry in entries}
    data = [_model(name, entry) for name, entry in sorted(named.items())]
    return _answer({"object": "list", "data": data})


def model(name: str, shown: Mapping[str, Any]) -> HttpResponse:
    """``/v1/models/NAME``, from the model's entry in ``/api/show`` or ``/api/tags``."""
    return _answer(_model(name, shown))


def _model(name: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    try:
        moment = datetime.fromisoformat(text_of(shown, "modified_at"))
        created = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        created = 0
    owner = name.split("/")[-2] if "/" in name else "library"
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


# ---- shared by chat and completions


def _options(
    fields: Fields,
    *,
    num_predict: int | None,
    frequency_penalty: float | None,
    presence_penalty: float | None,
) -> dict[str, Any]:
    """Ollama's options, with OpenAI's defaults rather than the model's."""
    temperature, top_p = fields.number("temperature"), fields.number("top_p")
    options = {
        "stop": _stops(fields),
        "num_predict": num_predict,
        "temperature": 1.0 if temperature is None else temperature,
        "seed": fields.integer("seed"),
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "top_p": 1.0 if top_p is None else top_p,
    }
    return {name: value for name, value in options.items() if value is not None}


def _stops(fields: Fields) -> list[str] | None:
    stop = fields.any("stop")
    if stop is None or isinstance(stop, str):
        return None if stop is None else [stop]
    return fields.texts("stop")


def _refuse_many(fields: Fields, name: str) -> None:
    if (fields.integer(name) or 1) != 1:
        raise early(f"only one choice per request is supported: '{name}' must be 1")


def _wants_usage(fields: Fields) -> bool:
    options = fields.inside("stream_options")
    return options is not None and options.boolean("include_usage")


def _head(identity: str, kind: str, stamp: Stamp, reply: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": identity,
        "object": kind,
        "created": stamp.created,
        "model": text_of(reply, "model"),
        "system_fingerprint": "fp_ollama",
    }


def _given(name: str, value: Any) -> dict[str, Any]:
    """One field, left out if empty."""
    return {name: value} if value else {}


def _answer(value: dict[str, Any]) -> HttpResponse:
    return HttpResponse(200, server_responses.OPENAI_JSON, dumps(value))
