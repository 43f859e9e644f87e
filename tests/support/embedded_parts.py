"""Requests to an embedded node."""

from __future__ import annotations

from pydoc_data.topics import topics

PASSAGES = [part for topic in topics.values() for part in topic.split("\n\n") if part.strip()][:500]
ODD = [
    " ",
    "\n",
    "a",
    "\x00",
    "é",
    "日本語",
    "\N{GRINNING FACE}",
    "\ufffd",
    "x" * 5000,
    "word " * 20_000,
]
