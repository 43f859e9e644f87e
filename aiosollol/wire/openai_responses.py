"""OpenAI's ``/v1/responses`` over Ollama's ``/api/chat``.

A request becomes the one that Ollama's own compatibility layer would make of it, and answers look
as its do (openai/responses.go; tests/captures has some). A conversation that the server should
remember is refused, for it remembers none, and tools that a server would have to run, such as a web
search, are not offered to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosollol.wire import answers
from aiosollol.wire.answers import HttpResponse
from aiosollol.wire.dialect import (
    Events,
    Question,
    Stamp,
    calls_of,
    count_of,
    dumps,
    message_of,
    text_of,
)
from aiosollol.wire.fields import Fields, early
from aiosollol.wire.openai_messages import think_of
from aiosollol.wire.openai_responses_input import read_input
from aiosollol.wire.openai_responses_stream import (
    ResponseEvents,
    call_item,
    message_item,
    reasoning_item,
    response_usage,
)

PATH = "/v1/responses"


class ResponseQuestion(Question):
    """A request to ``/v1/responses``. `echoed` is what the answer tells of it."""

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
        return HttpResponse(200, answers.OPENAI_JSON, dumps(value))

    def events(self, stamp: Stamp) -> Events:
        return ResponseEvents(self.describe, stamp)

    def describe(
        self, stamp: Stamp, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The response as an object, in whatever status it is."""
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
        "tools": [_told(entry) for entry in declared],
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


def _told(tool: Fields) -> dict[str, Any]:
    """A tool as the answer repeats it."""
    members = [_told(member) for member in tool.each("tools")]
    return {
        "type": tool.text("type"),
        "name": tool.text("name"),
        "description": tool.text("description") if tool.any("description") is not None else None,
        "strict": tool.boolean("strict") if tool.any("strict") is not None else None,
        "parameters": tool.mapping("parameters"),
        **({"tools": members} if members else {}),
    }


def _tools(tool: Fields) -> list[dict[str, Any]]:
    """A tool for /api/chat; the members of a namespace, with its name before theirs."""
    name = tool.text("name")
    if tool.text("type") == "namespace":
        members = [made for member in tool.each("tools") for made in _tools(member)]
        for member in members:
            function = member["function"]
            if name and not function["name"].startswith(f"{name}."):
                function["name"] = f"{name}.{function['name']}"
        return members
    if not name:
        return []  # built into OpenAI's server, and not into Ollama's
    parameters = tool.mapping("parameters")
    function = {
        "name": name,
        "description": tool.text("description"),
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    return [{"type": "function", "function": function}]
