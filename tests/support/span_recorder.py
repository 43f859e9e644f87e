"""Spans recorded in memory, and a gateway that records them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from aiosollol.telemetry.opentelemetry import OpenTelemetry
from aiosollol.testing import FakeOllama

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1"}
CHAT = {
    "model": "tiny-chat",
    "messages": [{"role": "user", "content": "a secret of three"}],
    "stream": False,
}


class Recorded:
    """Tracing that records the ended spans."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = OpenTelemetry(self.provider)

    def spans(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        ended = self._exporter.get_finished_spans()
        return [span for span in ended if kind is None or span.kind is kind]

    @property
    def server(self) -> ReadableSpan:
        (span,) = self.spans(SpanKind.SERVER)
        return span

    @property
    def clients(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.CLIENT)

    def clear(self) -> None:
        self._exporter.clear()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """The trace id and span id, in the format of headers."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def sent_to(nodes: Sequence[FakeOllama]) -> list[str]:
    """The `traceparent` headers without their flags, which differ between SDKs."""
    records = [record for node in nodes for record in node.log]
    return [record.headers["traceparent"][:-3] for record in records]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)
