"""`OpenTelemetry`: spans for requests that a gateway serves and a pool sends to its nodes.

Uses the OpenTelemetry API only, as recommended for libraries: unless the program sets up an SDK,
the calls do nothing. Names follow the semantic conventions for HTTP (stable) and for generative AI
(in development).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Token
from typing import TYPE_CHECKING

from aiosollol.core.node import NodeSpec
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.errors import MissingExtra
from aiosollol.ports import CANCELLED

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import TracerProvider

_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
)
_OPERATIONS = {"embed": "embeddings", "chat": "chat", "generate": "text_completion"}
_MOST_CHARACTERS = 256  # of values that clients choose


def is_recording() -> bool:
    """Whether the program has set a tracer provider. Raises MissingExtra."""
    check_extra()
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def check_extra() -> None:
    """Raise MissingExtra without opentelemetry-api."""
    try:
        import opentelemetry.trace  # noqa: F401 - to check that it is installed
    except ImportError as error:
        raise MissingExtra("OpenTelemetry", "otel") from error


class OpenTelemetry:
    """A `ports.Tracing` for ``OllamaPool(tracing=...)`` that records spans.

    tracer_provider: where spans go; None is the program's global provider.

    Raises MissingExtra without opentelemetry-api.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        check_extra()
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from aiosollol._version import __version__

        self._context = context
        self._trace = trace
        self._failed = trace.StatusCode.ERROR
        self._tracer = trace.get_tracer("aiosollol", __version__, tracer_provider)
        # Not the global propagator: baggage may hold data that the nodes should not see.
        self._propagator = TraceContextTextMapPropagator()

    def current(self) -> _Trace:
        """See `ports.Tracing`. The caller's span is OpenTelemetry's current one."""
        return _Trace(self, self._context.get_current())

    def serve(
        self, passed: Mapping[str, str] | None, method: str, route: str, path: str
    ) -> _ServerSpan:
        """See `ports.Tracing`."""
        known = method if method in _METHODS else "_OTHER"
        attributes = {
            "http.request.method": known,
            "url.path": path[:_MOST_CHARACTERS],
            "url.scheme": "http",
        }
        name = "HTTP" if known == "_OTHER" else known
        if route:
            name = f"{name} {route}"
            attributes["http.route"] = route
        parent = self._propagator.extract(passed or {}, self._context.get_current())
        span = self._tracer.start_span(
            name, parent, self._trace.SpanKind.SERVER, attributes=attributes
        )
        token = self._context.attach(self._trace.set_span_in_context(span, parent))
        return _ServerSpan(self, span, token)

    def _headers_of(self, context: Context) -> dict[str, str]:
        headers: dict[str, str] = {}
        self._propagator.inject(headers, context)
        return headers

    def _start(self, request: RouteRequest, spec: NodeSpec, parent: Context) -> _Span:
        operation = _OPERATIONS.get(request.kind, request.kind)
        model, address = request.model[:_MOST_CHARACTERS], spec.address
        span = self._tracer.start_span(
            f"{operation} {model}",
            parent,
            self._trace.SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "ollama",
                "gen_ai.request.model": model,
                "server.address": address.host,
                "server.port": address.port,
                "aiosollol.node": spec.name,
            },
        )
        headers = self._headers_of(self._trace.set_span_in_context(span, parent))
        return _Span(self, span, headers)

    def _end(self, span: OtelSpan, problem: str) -> None:
        if problem:
            span.set_attribute("error.type", problem)
            if problem != CANCELLED:
                span.set_status(self._failed)
        span.end()


class _Trace:
    """The current trace of a task: see `ports.Trace`."""

    __slots__ = ("_context", "_otel")

    def __init__(self, otel: OpenTelemetry, context: Context) -> None:
        self._otel = otel
        self._context = context

    @property
    def headers(self) -> Mapping[str, str]:
        return self._otel._headers_of(self._context)

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> _Span:
        return self._otel._start(request, spec, self._context)


class _Span:
    """One request to a node: see `ports.Span`."""

    __slots__ = ("_otel", "_span", "headers")

    def __init__(self, otel: OpenTelemetry, span: OtelSpan, headers: Mapping[str, str]) -> None:
        self._otel = otel
        self._span = span
        self.headers = headers

    def end(self, problem: str = "") -> None:
        self._otel._end(self._span, problem)


class _ServerSpan:
    """A request being served: see `ports.Serving`."""

    __slots__ = ("_otel", "_span", "_token")

    def __init__(self, otel: OpenTelemetry, span: OtelSpan, token: Token[Context]) -> None:
        self._otel = otel
        self._span = span
        self._token = token

    def end(self, status: int | None, problem: str = "") -> None:
        self._otel._context.detach(self._token)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            # A client error is not an error of the server.
            problem = problem or (str(status) if status >= 500 else "")
        self._otel._end(self._span, problem)
