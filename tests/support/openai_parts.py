"""Messages, answers and streams for tests of OpenAI's APIs."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths

from aiosollol.wire.openai import chat as openai
from aiosollol.wire.translation import Question, Stamp

STAMP = Stamp("532", 1_795_251_719)
USER = {"role": "user", "content": "hello"}


def capture(name: str) -> dict[str, Any]:
    path = project_paths.CAPTURES / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def chat(*messages: dict[str, Any], **more: Any) -> openai.ChatQuestion:
    return openai.read_chat(orjson.dumps({"model": "m", "messages": messages or [USER], **more}))


def done(reason: str = "stop", **more: Any) -> dict[str, Any]:
    counts = {"prompt_eval_count": 57, "eval_count": 6}
    return {"model": "m", "done": True, "done_reason": reason, **counts, **more}


def chunks(asked: Question, *parts: dict[str, Any]) -> list[Any]:
    events = asked.events(STAMP)
    stream = b"".join(map(events.feed, parts)) + events.finish()
    datas = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n")[:-1]]
    return [data.decode() if data == b"[DONE]" else orjson.loads(data) for data in datas]
