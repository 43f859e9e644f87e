"""The same JSON as different programs write it: spaces, order, escapes, line ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import strategies as st

Writer = Callable[[dict[str, Any]], str]
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def escaped(value: Any) -> str:
    """Every character of every string as an escape."""
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{escaped(key)}:{escaped(each)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(map(escaped, value)) + "]"
    if isinstance(value, str):
        units = value.encode("utf-16-be")
        return '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'
    return json.dumps(value)


def turned(value: dict[str, Any]) -> str:
    return compact(dict(reversed(value.items())))


WRITERS: dict[str, Writer] = {
    "compact": compact,
    "spaced": json.dumps,
    "spaced widely": lambda value: " " + json.dumps(value, separators=(" ,\t", " : ")) + " \t",
    "keys sorted": lambda value: json.dumps(value, sort_keys=True),
    "keys turned": turned,
    "escaped": escaped,
}
ENDS = {
    "lines": lambda lines: "".join(line + "\n" for line in lines),
    "CRLF": lambda lines: "".join(line + "\r\n" for line in lines),
    "no end": "\n".join,
    "no end of CRLF": "\r\n".join,
    "line ends first": lambda lines: "".join("\n" + line for line in lines),
    "empty lines": lambda lines: "".join(line + "\n\r\n \n" for line in lines),
    "a byte order mark": lambda lines: BOM + "\n".join(lines),
}


def part(content: str = "", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": content, **message}
    return {"model": "m", "message": said, "response": content, "done": False}


LAST = {**part(), "done_reason": "stop", "done": True, "prompt_eval_count": 3, "eval_count": 4}


def written(answer: Iterable[dict[str, Any]], write: str, end: str) -> bytes:
    return ENDS[end]([WRITERS[write](each) for each in answer]).encode()


every_spelling = pytest.mark.parametrize("write", WRITERS)

# Objects, some of which resemble another.
KEYS = st.sampled_from(["done", "error", 'a"done', "message", "a", "d,"])
SCALARS = (
    st.booleans()
    | st.none()
    | st.integers(-3, 3)
    | st.sampled_from(["error", ',"done":false}', '"error"', "done", "x\\", "é", "\n"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
