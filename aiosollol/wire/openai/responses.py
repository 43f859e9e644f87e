"""OpenAI's ``/v1/responses`` on top of Ollama's ``/api/chat``.

Requests and answers are converted as in Ollama's own compatibility layer (openai/responses.go;
examples in tests/captures). Requests that refer to a stored conversation are refused, because none
is stored, and tools that the server would have to run, such as web search, are not offered to the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosollol.wire import translation
from aiosollol.wire.json_fields import Fields, early
from aiosollol.wire.ollama import server_responses
from aiosollol.wire.ollama.go_json import kind_of, quoted
from aiosollol.wire.ollama.server_requests import Refusal
from aiosollol.wire.ollama.server_responses import HttpResponse
from aiosollol.wire.openai.messages import read_arguments, think_of
from aiosollol.wire.openai.responses_stream import (
    ResponseEvents,
    call_item,
    message_item,
    reasoning_item,
    response_usage,
)
from aiosollol.wire.translation import (
    Events,
    Question,
    Stamp,
    calls_of,
    count_of,
    dumps,
    message_of,
    text_of,
)

PATH = "/v1/responses"


class ResponseQuestion(Question):
    """A request to ``/v1/responses``. echoed: its fields that the answer repeats."""

    def __init__(self, payload: dict[str, Any], echoed: dict[str, Any]) -> None:
        super().__init__("/api/chat", payload)
        self.echoed = echoed

    def answer(self, reply: Mapping[str, Any], stamp: Stamp) -> HttpResponse:
        message = message_of(reply)
        calls = calls_of(message, stamp.unique)
        output: list[dict[str, Any]] = []
        if thinking := text_of(message, "thinking"):
            output.append(reasoning_item(f"rs_{stamp.unique}", thinking))
        for index, call in enumerate(calls):
            output.append(call_item(f"fc_{stamp.unique}_{index}", call))
        if not calls:
            output.append(message_item(f"msg_{stamp.unique}", text_of(message, "content")))
        value = self.describe(stamp, "completed", output, response_usage(reply))
        value["completed_at"] = stamp.created + count_of(reply, "total_duration") // 1_000_000_000
        return HttpResponse(200, server_responses.OPENAI_JSON, dumps(value))

    def events(self, stamp: Stamp) -> Events:
        return ResponseEvents(self.describe, stamp)

    def describe(
        self, stamp: Stamp, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The response object in the given status."""
        echoed = self.echoed
        return {
            "id": f"resp_{stamp.unique}",
            "object": "response",
            "created_at": stamp.created,
            "completed_at": None,
            "status": status,
            "incomplete_details": None,
            "model": self.model,
            "previous_response_id": None,
            "instructions": echoed["instructions"],
            "output": output,
            "error": None,
            "tools": echoed["tools"],
            "tool_choice": "auto",
            "truncation": echoed["truncation"],
            "parallel_tool_calls": True,
            "text": {"format": echoed["format"]},
            "top_p": echoed["top_p"],
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": echoed["temperature"],
            "reasoning": echoed["reasoning"],
            "usage": usage,
            "max_output_tokens": echoed["max_output_tokens"],
            "max_tool_calls": None,
            "store": False,
            "background": echoed["background"],
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def read_responses(body: bytes) -> ResponseQuestion:
    """Read a request to ``/v1/responses``. Raises Refusal."""
    fields = Fields.read(body, "ResponsesRequest")
    for name in ("previous_response_id", "conversation"):
        if fields.any(name):
            raise early(f"{name} is not supported: send the whole conversation as input")
    messages = read_input(fields)
    declared = fields.each("tools")
    tools = [tool for entry in declared for tool in _tools(entry)]
    if fields.any("tool_choice") == "none":
        tools = []
    text = fields.inside("text")
    wanted = text.inside("format") if text else None
    schema = wanted.mapping("schema") if wanted and wanted.text("type") == "json_schema" else None
    limit, temperature = fields.integer("max_output_tokens"), fields.number("temperature")
    top_p = fields.number("top_p")
    temperature = 1 if temperature is None else temperature
    reasoning = fields.inside("reasoning") or Fields({}, "")
    think = think_of(reasoning.text("effort"))
    payload = {
        "model": fields.text("model"),
        "messages": messages,
        "stream": fields.boolean("stream"),
        **({"format": schema} if schema is not None else {}),
        "options": {
            "temperature": temperature,
            **({} if top_p is None else {"top_p": top_p}),
            **({} if limit is None else {"num_predict": limit}),
        },
        **({"tools": tools} if tools else {}),
        **({} if think is None else {"think": think}),
    }
    echoed = {
        "instructions": fields.text("instructions") or None,
        "tools": [_echoed(entry) for entry in declared],
        "truncation": fields.text("truncation") or "disabled",
        "format": _format(wanted),
        "top_p": 1 if top_p is None else top_p,
        "temperature": temperature,
        "reasoning": _reasoning(reasoning),
        "max_output_tokens": limit,
        "background": fields.boolean("background"),
    }
    return ResponseQuestion(payload, echoed)


def _format(wanted: Fields | None) -> dict[str, Any]:
    if wanted is None:
        return {"type": "text"}
    told = {
        "type": wanted.text("type"),
        "name": wanted.text("name"),
        "schema": wanted.mapping("schema"),
    }
    strict = {} if wanted.any("strict") is None else {"strict": wanted.boolean("strict")}
    return {name: value for name, value in told.items() if value or name == "type"} | strict


def _reasoning(reasoning: Fields) -> dict[str, str] | None:
    told = {name: reasoning.text(name) for name in ("effort", "summary")}
    return {name: value for name, value in told.items() if value} or None


# ---- tools


def _echoed(tool: Fields) -> dict[str, Any]:
    """A tool as the answer repeats it."""
    members = [_echoed(member) for member in tool.each("tools")]
    return {
        "type": tool.text("type"),
        "name": tool.text("name"),
        "description": tool.text("description") if tool.any("description") is not None else None,
        "strict": tool.boolean("strict") if tool.any("strict") is not None else None,
        "parameters": tool.mapping("parameters"),
        **({"tools": members} if members else {}),
    }


def _tools(tool: Fields) -> list[dict[str, Any]]:
    """A tool for /api/chat; a namespace becomes its members, prefixed with its name."""
    name = tool.text("name")
    if tool.text("type") == "namespace":
        members = [made for member in tool.each("tools") for made in _tools(member)]
        for member in members:
            function = member["function"]
            if name and not function["name"].startswith(f"{name}."):
                function["name"] = f"{name}.{function['name']}"
        return members
    if not name:
        return []  # built into OpenAI's server, not Ollama's
    parameters = tool.mapping("parameters")
    function = {
        "name": name,
        "description": tool.text("description"),
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    return [{"type": "function", "function": function}]


def read_input(fields: Fields) -> list[dict[str, Any]]:
    """Messages for /api/chat, from `instructions` and `input`. Raises Refusal."""
    instructions, given = fields.text("instructions"), fields.any("input")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}] if given else messages
    if given is not None and not isinstance(given, list):
        raise early(f"input must be a string or array: it is {kind_of(given)}")
    history = _History(messages)
    items = [_item(item, f"input[{index}]") for index, item in enumerate(given or ())]
    for item, after in zip(items, [*items[1:], None], strict=False):
        history.add(item, after)
    return history.finish()


def _item(item: Any, path: str) -> Fields:
    if not isinstance(item, dict):
        raise early(f"{path}: cannot unmarshal {kind_of(item)} into an input item")
    return Fields(item, path)


def _kind(item: Fields) -> str:
    kind = item.text("type")
    return "message" if not kind and item.text("role") else kind


class _History:
    """The messages so far, and the thinking that belongs to the model's next one."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._thinking = ""

    def add(self, item: Fields, after: Fields | None) -> None:
        match _kind(item):
            case "message":
                self._message(item, after)
            case "function_call":
                self._call(item)
            case "function_call_output":
                self._messages.append(
                    {"role": "tool", **_content(item, "output"), **_call_id(item)}
                )
            case "reasoning":
                self._thinking = item.text("encrypted_content")
            case "web_search_call":
                pass  # its results are in the next message
            case "":
                raise early(f"{item.path}: input item missing required 'type' field")
            case kind:
                raise early(f"{item.path}: unknown input item type: {quoted(kind)}")

    def finish(self) -> list[dict[str, Any]]:
        if self._thinking:
            self._messages.append({"role": "assistant", "content": "", **self._thought()})
        return self._messages

    def _message(self, item: Fields, after: Fields | None) -> None:
        message = {"role": item.text("role"), **_content(item, "content")}
        if message["role"] == "assistant":
            message.update(self._thought())
            if after is not None and _kind(after) == "function_call_output":
                call = self._caller(after.text("call_id"))
                if call is not None:
                    # Text between a call and its result belongs to the call.
                    _join(call, message)
                    return
        self._messages.append(message)

    def _call(self, item: Fields) -> None:
        problem = f"{item.path}: failed to parse function call arguments"
        arguments = read_arguments(item.text("arguments"), problem)
        function = {"name": item.text("name"), "arguments": arguments}
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": ""})
        caller = self._messages[-1]
        caller.update(self._thought())
        caller.setdefault("tool_calls", []).append(
            {"id": item.text("call_id"), "function": function}
        )

    def _caller(self, call_id: str) -> dict[str, Any] | None:
        """The last message, if it contains that call."""
        last = self._messages[-1] if self._messages else {}
        is_it = call_id and any(call["id"] == call_id for call in last.get("tool_calls", ()))
        return last if is_it else None

    def _thought(self) -> dict[str, str]:
        thinking, self._thinking = self._thinking, ""
        return {"thinking": thinking} if thinking else {}


def _join(call: dict[str, Any], message: dict[str, Any]) -> None:
    call["content"] = "\n".join(filter(None, (call["content"], message["content"])))
    if "images" in message:
        call["images"] = call.get("images", []) + message["images"]
    if "thinking" in message:
        call["thinking"] = message["thinking"]


def _call_id(item: Fields) -> dict[str, str]:
    call_id = item.text("call_id")
    return {"tool_call_id": call_id} if call_id else {}


def _content(item: Fields, name: str) -> dict[str, Any]:
    """A content: a string, or parts, with their texts joined."""
    given = item.any(name)
    if given is None or isinstance(given, str):
        return {"content": given or ""}
    if not isinstance(given, list):
        raise early(f"{item.path}: {name} must be a string or array: it is {kind_of(given)}")
    text: list[str] = []
    shown: list[str] = []
    for index, part in enumerate(given):
        path = f"{item.path}: {name}[{index}]"
        try:
            _take(_item(part, path), text, shown)
        except Refusal as refusal:
            if path in refusal.message:
                raise
            raise early(f"{path}: {refusal.message}") from refusal
    return {"content": "".join(text), **({"images": shown} if shown else {})}


def _take(part: Fields, text: list[str], shown: list[str]) -> None:
    match part.text("type"):
        case "input_text" | "output_text":
            text.append(part.text("text"))
        case "input_image":
            if url := part.text("image_url"):  # a file id cannot be resolved
                shown.append(translation.from_url(url))
        case "input_file":
            raise early("file inputs are not currently supported")
        case kind:
            raise early(f"unknown content type: {kind}")
