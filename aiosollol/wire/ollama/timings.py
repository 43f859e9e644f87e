"""Durations and token counts in Ollama's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosollol.core.timings import ServerTimings

_NANOSECOND = 1e-9
_MOST_NANOSECONDS = 10**16  # 116 days
_MOST_TOKENS = 10**9


def read_timings(fields: Mapping[str, Any]) -> ServerTimings | None:
    """The timings in a whole answer, or in the last part of a stream; None if it has none.

    Values that no server measures, such as negative ones, count as not reported.
    """
    total = fields.get("total_duration")
    if not (type(total) is int and 0 < total < _MOST_NANOSECONDS):
        return None
    return ServerTimings(
        total * _NANOSECOND,
        _number(fields, "load_duration", total) * _NANOSECOND,
        _number(fields, "prompt_eval_count", _MOST_TOKENS),
        _number(fields, "prompt_eval_duration", total) * _NANOSECOND,
        _number(fields, "eval_count", _MOST_TOKENS),
        _number(fields, "eval_duration", total) * _NANOSECOND,
    )


def _number(fields: Mapping[str, Any], name: str, most: int) -> int:
    value = fields.get(name)
    return value if type(value) is int and 0 < value <= most else 0
