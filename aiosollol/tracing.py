"""`PassOn`: the trace of a gateway's client reaches the nodes, and nothing is recorded here."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token

from aiosollol.core.node import NodeSpec
from aiosollol.core.routing import RouteRequest


class PassedOn:
    """A trace of others, as every request to a node carries it; and each such request."""

    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> PassedOn:
        """See `ports.Trace`."""
        return self

    def end(self, problem: str = "") -> None:
        """See `ports.Span`."""


# A context variable, because tasks that a request makes inherit it, and nobody has to hand it on.
_PASSED_ON: ContextVar[PassedOn | None] = ContextVar("aiosollol_passed_on", default=None)


class PassOn:
    """The `ports.Tracing` of a pool that was given none."""

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
