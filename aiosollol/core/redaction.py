"""Redact passwords and tokens in values shown in errors, and content in errors that are logged."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from urllib.parse import unquote

from aiosollol.errors import NodeError, ProtocolError, RequestFailed, ResponseError, StreamCutOff

_LEFT_OUT = "..."
_MOST_LAYERS = 8  # of percent-encoding that are decoded
_MOST_ITEMS = 8
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_WITH_PORT = re.compile(
    r"(?P<before>(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]{2,}|)"
    r"(?P<host>\[[^\]]*\]|[^:/\\]*):(?P<port>[^/\\]*)"
)
_IPV6 = re.compile(r"\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")


def has_at_sign(text: str) -> bool:
    """Whether `text` has an at sign, including percent-encoded and full-width ones."""
    return "@" in text or (("%" in text or not text.isascii()) and "@" in _decoded(text))


def without_userinfo(text: str) -> str:
    """`text` with everything before its last at sign replaced by dots.

    A password may contain any character, so its start cannot be determined.
    """
    if not has_at_sign(text):
        return text
    return f"{_LEFT_OUT}@{_decoded(text).rpartition('@')[2]}"


def redacted(text: str) -> str:
    """`text`, meant to be an address or URL, without possible secrets, for an error.

    Replaced by dots: everything before the last at sign; an invalid port with the text after it
    (``http://user:password`` without a host); a query and a fragment.
    """
    shown = _QUERY.sub(lambda found: f"{found[0][0]}{_LEFT_OUT}", without_userinfo(text))
    found = _WITH_PORT.match(shown)
    if found is None or re.fullmatch(r"[0-9.-]*", found["port"]):
        return shown
    if _IPV6.fullmatch(f"{found['host']}:{found['port']}"):
        return shown
    return f"{shown[: found.start('port')]}{_LEFT_OUT}"


def safe_repr(value: object) -> str:
    """The repr of `value` for an error, with texts `without_userinfo`.

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


def summary(error: BaseException) -> str:
    """`error` for a log: its kind and node, without content of requests or answers.

    A node's error message, or a malformed answer, may quote a prompt.
    """
    match error:
        case StreamCutOff():
            return f"{error.node}: StreamCutOff after {error.delivered} parts"
        case ResponseError():
            return f"{error.node}: {type(error).__name__} (status {error.status})"
        case ProtocolError():
            return f"{error.node}: ProtocolError"
        case NodeError():
            return f"{type(error).__name__}: {error}"
        case RequestFailed():
            attempts = dict.fromkeys(map(summary, error.attempts))
            head = str(error).partition("\n")[0]
            return "; ".join([f"{type(error).__name__}: {head}", *attempts])
        case _:
            return type(error).__name__
