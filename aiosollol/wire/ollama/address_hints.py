"""What to write instead of a node's address, where an answer shows that it is not quite right."""

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
    """What to do about the answer of a server that is somewhere else; "" if nothing is known.

    url: the node's address. path: the endpoint that was requested below it. location: the header
    of that name, "" if there is none.
    """
    if status in _REDIRECTS and location:
        return _redirect_hint(url, path, location)
    return _suffix_hint(url) if status in (404, 405) else ""


def _redirect_hint(url: str, path: str, location: str) -> str:
    try:
        target = urlsplit(urljoin(url.rstrip("/") + path, location))
        # Neither credentials nor what a query may hold.
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
    # The last segments of a path are compared, each once: no search goes over it again and again.
    segments = parts.path.rstrip("/").split("/")
    for count in (1, 2, 3):
        suffix = "/" + "/".join(segments[-count:])
        match = _ENDPOINT.fullmatch(suffix) if count < len(segments) else None
        if match:
            path = "/".join(segments[:-count]).rstrip("/")
            base = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
            return f"its address ends in {suffix}: write {base} instead"
    return ""
