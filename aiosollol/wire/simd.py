"""Vectors of JSON numbers, read by simdjson where it and numpy are installed.

Servers that know no base64, and requests with options, answer numbers. simdjson hands them out as
one array of doubles, without a Python float for each: a third of what orjson and a list cost
(benchmarks/README.md).
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _parser() -> Any:
    """The class of simdjson's parsers, None if it is not installed."""
    try:
        from simdjson import Parser
    except ImportError:
        return None
    return Parser


def read_numbers(body: bytes, count: int) -> tuple[memoryview[float], int, object] | None:
    """Floats, their number per vector, and the token count of an answer of ``/api/embed``.

    None for whatever is not plainly `count` vectors of numbers, of one length: then the answer is
    read in the ordinary way, which says what is wrong. Also if numpy was not imported by anybody
    yet: that takes longer than it saves.
    """
    numpy = sys.modules.get("numpy")
    parser = _parser() if numpy is not None else None
    if parser is None or numpy is None or not count:
        return None
    try:
        answer = parser().parse(body)
        rows = answer["embeddings"]
        lengths = {len(row) for row in rows}
        if len(rows) != count or len(lengths) != 1 or not max(lengths):
            return None
        # It flattens lists in lists, however deep: there must be no bracket but one per vector.
        if body.count(b"[") != count + 1:
            return None
        doubles = numpy.frombuffer(rows.as_buffer(of_type="d"), dtype=numpy.float64)
        tokens = answer.get("prompt_eval_count")
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    with numpy.errstate(over="ignore"):  # what is too large becomes infinite, and is looked for
        floats = doubles.astype(numpy.float32)
    return memoryview(floats), lengths.pop(), tokens
