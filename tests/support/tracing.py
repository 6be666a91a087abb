"""Spans that are kept in memory."""

from __future__ import annotations

from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@cache
def exporter() -> InMemorySpanExporter:
    """Where the spans of this process go from now on: a process has one provider."""
    collecting = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(collecting))
    trace.set_tracer_provider(provider)
    return collecting


def spans_of(exported: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """The spans of that name that have ended, in the order in which they did."""
    return [span for span in exported.get_finished_spans() if span.name == name]


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is one of another's children, and so of the same trace."""
    return (
        child.parent is not None
        and child.context is not None
        and parent.context is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )
