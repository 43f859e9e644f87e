"""Captured requests and answers of a real server, and their comparison with other answers."""

from __future__ import annotations

import json
import re
from itertools import groupby
from typing import Any

import aiohttp
import project_paths

CAPTURES = {path.stem: path for path in sorted((project_paths.CAPTURES).glob("*.json"))}


NOT_EMBEDDED = {
    "04-ps-empty": "its model is always loaded",
    "16-embed-too-long-truncate-false": "no text is too long for it",
    "20-embed-with-chat-model": "it has no chat model",
    "55-copy": "its models are what they are",
    "56-delete": "its models are what they are",
    "57-delete-unknown": "its models are what they are",
}


SHORTENED = "word word word word word word word word word word word word ... (15000 characters)"


MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


def load(name: str) -> dict[str, Any]:
    capture: dict[str, Any] = json.loads(CAPTURES[name].read_text("utf-8"))
    return capture


def is_for_chat(name: str) -> bool:
    return "tiny-chat" in json.dumps(load(name)["request"])


EMBEDDED = [name for name in CAPTURES if name not in NOT_EMBEDDED and not is_for_chat(name)]


async def check(url: str, name: str, *, dim: int) -> None:
    capture = load(name)
    status, content_type, body = await send(url, capture["request"])
    assert status == capture["status"]
    assert content_type == capture["headers"].get("Content-Type", "")
    expected = capture["body"]
    if not isinstance(expected, dict | list):
        assert body.decode() == expected
        return
    if content_type == "text/event-stream":
        check_events(body.decode(), "\n".join([*expected, ""]))
        return
    if isinstance(expected, list):  # a stream
        lines = [json.loads(line) for line in body.splitlines()]
        wanted = [json.loads(line) for line in expected]
        assert body.endswith(b"\n")
        for line in lines[:-1]:
            check_shape(line, wanted[0], dim)
        check_shape(lines[-1], wanted[-1], dim)
        return
    answer = json.loads(body)
    if status >= 400:
        assert answer == expected
    else:
        check_shape(answer, expected, dim)


async def send(url: str, request: dict[str, Any]) -> tuple[int, str, bytes]:
    body = request["body"]
    text = body if isinstance(body, str) else json.dumps(body)
    data = None if body is None else text.replace(SHORTENED, "word " * 3000)
    async with (
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session,
        session.request(request["method"], url + request["path"], data=data) as response,
    ):
        return response.status, response.headers.get("Content-Type", ""), await response.read()


def check_shape(actual: Any, expected: Any, dim: int, at: str = "") -> None:
    """Check keys with their order, types, emptiness of lists, and lengths of vectors."""
    where = f"{at}: {actual!r} is not like {expected!r}"[:300]
    if expected == "..." and at:
        return  # left out of the capture
    if isinstance(expected, dict):
        assert isinstance(actual, dict), where
        if at == ".model_info":  # only some captured keys, named by model family
            assert set(map(kinds, actual.values())) <= set(map(kinds, expected.values())), where
            return
        assert list(actual) == list(expected), where
        for key, value in expected.items():
            check_shape(actual[key], value, dim, f"{at}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list), where
        assert bool(actual) == bool(expected), where
        if at.endswith("embeddings"):
            assert len(actual) == len(expected), where
        if at.endswith(("embedding", "embeddings[]")) and expected:
            assert len(actual) == (dim if len(expected) == 384 else len(expected)), where
        for item in actual:
            check_shape(item, expected[0], dim, f"{at}[]")
    else:
        assert kinds(actual) == kinds(expected), where
        if isinstance(expected, str) and MOMENT.fullmatch(expected):
            assert MOMENT.fullmatch(actual), where


def check_events(actual: str, expected: str) -> None:
    """Check that events have the same order; repeated ones may occur any number of times."""
    left = events_of(actual)
    for event, run in groupby(events_of(expected)):
        is_repeated = len(list(run)) > 1
        count = 0
        while left and left[0] == event:
            count += 1
            left.pop(0)
        assert count == 1 or is_repeated, f"{count} times {event}, and then {left}"
    assert not left


def events_of(stream: str) -> list[Any]:
    """The shape of each server-sent event."""
    assert stream.endswith("\n\n")
    return [
        [(name, shape(json.loads(data)) if data.startswith("{") else data) for name, data in event]
        for event in (
            [line.split(": ", 1) for line in lines.split("\n")]
            for lines in stream[:-2].split("\n\n")
        )
    ]


def shape(value: Any, key: str = "") -> Any:
    """Keys in order, and types; strings only where they identify something."""
    if isinstance(value, dict):
        return [(name, shape(item, name)) for name, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    is_told = key in ("type", "object", "role", "system_fingerprint")
    return value if is_told else kinds(value)


def kinds(value: object) -> str:
    return type(value).__name__
