"""What an error may show of a text that may hold a password, and of other values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from urllib.parse import unquote

_LEFT_OUT = "..."
_MOST_LAYERS = 8  # of percent-encoding that are taken off
_MOST_ITEMS = 8
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_WITH_PORT = re.compile(
    r"(?P<before>(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]{2,}|)"
    r"(?P<host>\[[^\]]*\]|[^:/\\]*):(?P<port>[^/\\]*)"
)
_IPV6 = re.compile(r"\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")


def has_at_sign(text: str) -> bool:
    """Whether `text` has an at sign, be it percent-encoded or of full width."""
    return "@" in text or (("%" in text or not text.isascii()) and "@" in _decoded(text))


def without_userinfo(text: str) -> str:
    """`text` with dots in place of all that stands before its last at sign.

    A password may contain any character, so where in the text it begins cannot be known.
    """
    if not has_at_sign(text):
        return text
    return f"{_LEFT_OUT}@{_decoded(text).rpartition('@')[2]}"


def redacted(text: str) -> str:
    """`text`, which was meant to be an address or a URL, as an error may show it.

    Dots stand in place of what may be a secret: all before the last at sign; what stands where a
    port should and is none, with what follows (``http://user:password`` without a host); a query
    and a fragment.
    """
    shown = _QUERY.sub(lambda found: f"{found[0][0]}{_LEFT_OUT}", without_userinfo(text))
    found = _WITH_PORT.match(shown)
    if found is None or re.fullmatch(r"[0-9.-]*", found["port"]):
        return shown
    if _IPV6.fullmatch(f"{found['host']}:{found['port']}"):
        return shown
    return f"{shown[: found.start('port')]}{_LEFT_OUT}"


def safe_repr(value: object) -> str:
    """`value` much as Python writes it, for an error: texts `without_userinfo`.

    Texts in a mapping are left out: it may be a node, whose headers hold tokens.
    """
    match value:
        case str():
            return repr(without_userinfo(value))
        case Mapping():
            items = (f"{safe_repr(key)}: {_item_repr(value[key])}" for key in value)
            return f"{{{_joined(items, len(value))}}}"
        case list() | tuple() | Set():
            return f"[{_joined(map(safe_repr, value), len(value))}]"
        case _:
            return without_userinfo(repr(value))


def _item_repr(value: object) -> str:
    return _LEFT_OUT if isinstance(value, str | bytes) else safe_repr(value)


def _joined(items: Iterable[str], count: int) -> str:
    shown = list(islice(items, _MOST_ITEMS))
    return ", ".join([*shown, _LEFT_OUT] if count > len(shown) else shown)


def _decoded(text: str) -> str:
    for _ in range(_MOST_LAYERS):
        before, text = text, unquote(text)
        if text == before:
            break
    return unicodedata.normalize("NFKC", text)
