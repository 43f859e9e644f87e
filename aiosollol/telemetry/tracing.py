"""`PassOn`: forwards the trace of a gateway's client to the nodes, and records nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token

from aiosollol.core.node import NodeSpec
from aiosollol.core.routing.strategies import RouteRequest


class PassedOn:
    """A client's trace, which every request to a node carries; also such a request's span."""

    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> PassedOn:
        """See `ports.Trace`."""
        return self

    def end(self, problem: str = "") -> None:
        """See `ports.Span`."""


# A context variable, because tasks started by a request inherit it.
_PASSED_ON: ContextVar[PassedOn | None] = ContextVar("aiosollol_passed_on", default=None)


class PassOn:
    """The default `ports.Tracing` of a pool."""

    def current(self) -> PassedOn | None:
        """See `ports.Tracing`."""
        return _PASSED_ON.get()

    def serve(
        self, passed: Mapping[str, str] | None, method: str, route: str, path: str
    ) -> _Serving | None:
        """See `ports.Tracing`."""
        return None if passed is None else _Serving(_PASSED_ON.set(PassedOn(passed)))


class _Serving:
    __slots__ = ("_token",)

    def __init__(self, token: Token[PassedOn | None]) -> None:
        self._token = token

    def end(self, status: int | None, problem: str = "") -> None:
        _PASSED_ON.reset(self._token)


TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

_IDS = "(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# In unknown later versions, more fields may follow.
_PARENT = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[!-~]*)?")
_KEY = "[a-z0-9][a-z0-9_*/@-]{0,255}"
_VALUE = "[ -+\\--<>-~]{0,255}[!-+\\--<>-~]"
_MEMBER = re.compile(rf"({_KEY})={_VALUE}")
_MOST_MEMBERS = 32
_MOST_CHARACTERS = 4096


def read_trace(parents: Sequence[str], states: Sequence[str]) -> dict[str, str] | None:
    """The trace headers to forward; None if there are none or they are malformed.

    parents, states: the values of every `traceparent` and `tracestate` header. More than one
    `traceparent` counts as none, as recommended by W3C; a malformed `tracestate` is dropped and the
    rest of the trace kept.
    """
    if len(parents) != 1:
        return None
    parent = parents[0].strip(" \t")
    if len(parent) > _MOST_CHARACTERS or not _PARENT.fullmatch(parent):
        return None
    found = {TRACEPARENT: parent}
    if state := _state(",".join(states)):
        found[TRACESTATE] = state
    return found


def _state(text: str) -> str:
    """A `tracestate` without empty members; "" if malformed."""
    if len(text) > _MOST_CHARACTERS:
        return ""
    members = [member.strip(" \t") for member in text.split(",")]
    members = [member for member in members if member]
    keys = {match[1] for member in members if (match := _MEMBER.fullmatch(member))}
    # Invalid members and repeated keys make fewer keys than members.
    if len(keys) != len(members) or len(members) > _MOST_MEMBERS:
        return ""
    return ",".join(members)
