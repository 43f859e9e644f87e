"""Captured answers, for tests of Ollama's API."""

from __future__ import annotations

import json
from typing import Any

import orjson
import project_paths

CAPTURES = project_paths.CAPTURES


def captured(name: str) -> tuple[int, bytes, Any]:
    """Status and body of a real answer, and the body of the request that it answers."""
    capture = json.loads((CAPTURES / f"{name}.json").read_text("utf-8"))
    body = capture["body"]
    raw = body.encode() if isinstance(body, str) else orjson.dumps(body)
    return capture["status"], raw, capture["request"]["body"]


HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>"
