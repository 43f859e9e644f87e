"""Suggestions for a node address that an answer shows to be slightly wrong."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit, urlunsplit

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MAX_SHOWN = 200
_ENDPOINT = re.compile(
    r"/+(v1|api)"
    r"(?:/+(?:chat(?:/+completions)?|completions|embed|embeddings|generate|models|tags|version))?"
    r"/*",
    re.IGNORECASE,
)


def address_hint(url: str, path: str, status: int, location: str) -> str:
    """Advice for an answer that suggests another address; "" if there is none.

    url: the node's address.
    path: the requested endpoint, relative to `url`.
    status: the answer's HTTP status.
    location: the Location header, "" if there is none.
    """
    if status in _REDIRECTS and location:
        return _redirect_hint(url, path, location)
    return _suffix_hint(url) if status in (404, 405) else ""


def _redirect_hint(url: str, path: str, location: str) -> str:
    try:
        target = urlsplit(urljoin(url.rstrip("/") + path, location))
        # Show neither credentials nor the query.
        host = target.netloc.rpartition("@")[2]
        found = urlunsplit((target.scheme, host, target.path, "", ""))
    except ValueError:
        found = location.partition("?")[0]
    shown = "".join(each if each.isprintable() else "?" for each in found[:_MAX_SHOWN])
    base = shown.removesuffix(path)
    if base != shown and base != url.rstrip("/"):
        return f"it redirects to {base}: write that as the node's address"
    return f"it redirects to {shown}: write an address that answers without a redirect"


def _suffix_hint(url: str) -> str:
    parts = urlsplit(url)
    # Compare only the last segments of the path, each once, to stay linear.
    segments = parts.path.rstrip("/").split("/")
    for count in (1, 2, 3):
        suffix = "/" + "/".join(segments[-count:])
        match = _ENDPOINT.fullmatch(suffix) if count < len(segments) else None
        if match:
            path = "/".join(segments[:-count]).rstrip("/")
            base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
            return f"its address ends in {suffix}: write {base} instead"
    return ""
