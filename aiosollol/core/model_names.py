"""Model names as Ollama parses them: ``[host/][namespace/]model[:tag]``, case-insensitive.

The rules are those of types/model/name.go and internal/modelref in its source.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_NAME = 640
"""Maximum length of a valid name, in characters."""

_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_PART = r"[0-9A-Za-z_][0-9A-Za-z_.\-]{0,79}"
_NAMESPACE = r"[0-9A-Za-z_][0-9A-Za-z_\-]{0,79}"
_HOST = r"[0-9A-Za-z_][0-9A-Za-z_.:\-]{0,349}"
_NAME = re.compile(
    rf"(?:(?:(?:https?://)?(?P<host>{_HOST})/)?(?P<namespace>{_NAMESPACE})/)?"
    rf"(?P<model>{_PART})(?::(?P<tag>{_PART}))?"
)


@lru_cache(maxsize=1024)
def full_name(model: str) -> str:
    """The key of a model: equal for all names by which Ollama finds the same model.

    This is the shortest name with its tag, in lower case: ``Llama3.2``, ``library/llama3.2`` and
    ``registry.ollama.ai/library/llama3.2:latest`` are ``llama3.2:latest``. An invalid name is
    returned unchanged. Results are cached, so check untrusted names with `is_valid_name` first: a
    long one would stay in memory.
    """
    shortest = _shortest(model)
    return _invalid(model) if shortest is None else shortest.lower()


def shortest_name(model: str) -> str:
    """The name in Ollama's lists: with its tag, without the default host and namespace."""
    return _shortest(model) or _invalid(model)


def qualified_name(model: str) -> str:
    """The key with host and namespace: ``registry.ollama.ai/library/llama3.2:latest``."""
    name = full_name(model)
    slashes = name.count("/")
    if not is_valid_name(model) or slashes >= 2:
        return name
    return f"{_DEFAULT_HOST}/{name}" if slashes else f"{_DEFAULT_HOST}/{_DEFAULT_NAMESPACE}/{name}"


def is_valid_name(model: str) -> bool:
    """Whether Ollama accepts this name."""
    return _shortest(model) is not None


def _shortest(model: str) -> str | None:
    """The shortest name; None if invalid."""
    return _usual_shortest(model) if len(model) <= MAX_NAME else None


def _invalid(model: str) -> str:
    """An invalid name as a key. Not in lower case, which could make it valid."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:{_DEFAULT_TAG}"


@lru_cache(maxsize=1024)
def _usual_shortest(model: str) -> str | None:
    name = model.strip()
    match = _NAME.fullmatch(name)
    suffix = ""
    if match is None:
        # A second tag names the source: "x:20b:cloud" is listed as "x:20b-cloud".
        name, _, source = name.rpartition(":")
        match = _NAME.fullmatch(name) if source.lower() in ("cloud", "local") else None
        if match is None or match["tag"] is None:
            return None
        suffix = "-cloud" if source.lower() == "cloud" else ""
    host, namespace = match["host"], match["namespace"]
    short = f"{match['model']}:{match['tag'] or _DEFAULT_TAG}{suffix}"
    if host is not None and host.lower() != _DEFAULT_HOST:
        return f"{host}/{namespace}/{short}"
    if namespace is not None and namespace.lower() != _DEFAULT_NAMESPACE:
        return f"{namespace}/{short}"
    return short
