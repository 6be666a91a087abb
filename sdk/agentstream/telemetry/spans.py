"""Spans of messages, and the trace context that connects sender and handler.

Field `t` of an entry is W3C Trace Context: the value of `traceparent`, and after a semicolon that of
`tracestate`, if there is one. It is not signed: any producer can make it up.

Attributes follow OpenTelemetry's semantic conventions for messaging where these have a name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Token
from typing import Any, Protocol, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from agentstream.errors import Retry, error_text
from agentstream.protocol.envelope import Message
from agentstream.sent import SentMessage

_LONGEST = 1_024
_Result = TypeVar("_Result")
_propagator = TraceContextTextMapPropagator()


class TracedRecord(Protocol):
    """The parts of an outgoing message that its span needs.

    Attributes:
        message: the message.
        data: the field `m`.
        stream: name of the AgentStream, if the sender named one.
        trace: the field `t`.
    """

    message: Message
    data: bytes
    stream: str | None
    trace: bytes


class TracedDelivery(Protocol):
    """The parts of a delivery that its span needs."""

    @property
    def message(self) -> Message:
        """The message."""

    @property
    def stream(self) -> str:
        """Name of the AgentStream."""

    @property
    def entry(self) -> str:
        """The id on the stream."""

    @property
    def attempt(self) -> int:
        """The attempt, counted from 1."""

    @property
    def replay(self) -> str | None:
        """Name of the StreamReplay that it comes from, if any."""

    @property
    def trace_context(self) -> bytes | None:
        """The field `t`."""


class Handling:
    """The current span while a handler runs for a message or a batch.

    Args:
        span: the span; it ends with the handler.
    """

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] = context.attach(trace.set_span_in_context(span))

    def end(self, error: BaseException | None, outcome: str = "") -> None:
        """Ends the span, in the thread and task in which it began.

        Args:
            error: the handler's exception.
            outcome: of the delivery.
        """
        context.detach(self._token)
        if isinstance(error, asyncio.CancelledError):
            self._span.set_status(StatusCode.ERROR, "cancelled")
        elif error is not None and not isinstance(error, Retry):
            # it prints the error
            with contextlib.suppress(Exception):
                self._span.record_exception(error)
            self._span.set_status(StatusCode.ERROR, error_text(error))
        if outcome:
            self._span.set_attribute("agentstream.outcome", outcome)
        self._span.end()


class Spans:
    """Makes spans with the program's tracer provider."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("agentstream")
        self._provided = False

    @property
    def wanted(self) -> bool:
        """Whether the program has a tracer provider, or a span is current."""
        if not self._provided:
            self._provided = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return self._provided or trace.get_current_span() is not trace.INVALID_SPAN

    async def sent(self, record: TracedRecord, sending: Coroutine[Any, Any, SentMessage]) -> SentMessage:
        """What sending returns, in a span of the sender."""
        attributes = {
            **_of_message(record.message, "send"),
            "messaging.message.body.size": len(record.data),
        }
        with self._sending(record.stream or record.message.to, attributes) as span:
            record.trace = carried()
            sent = await sending
            if not sent.shed:
                _sent_to(span, sent.stream)
                span.set_attribute("agentstream.entry", sent.entry)
            return sent

    async def sent_many(
        self, records: Sequence[TracedRecord], sending: Coroutine[Any, Any, list[SentMessage]]
    ) -> list[SentMessage]:
        """The same for many messages, in one span."""
        attributes = {**_of("send"), "messaging.batch.message_count": len(records)}
        with self._sending("many", attributes) as span:
            trace_context = carried()
            for record in records:
                record.trace = trace_context
            sent = await sending
            if len(streams := {one.stream for one in sent}) == 1:
                _sent_to(span, streams.pop())
            return sent

    async def asked(self, request: Message, asking: Coroutine[Any, Any, _Result]) -> _Result:
        """Awaits a request in a span that lasts until the answer comes."""
        attributes = _of_message(request, "request")
        del attributes["messaging.operation.type"]
        with self._tracer.start_as_current_span(
            f"request {request.to}", kind=SpanKind.CLIENT, attributes=attributes
        ):
            return await asking

    @contextmanager
    def answering(self, request: Message) -> Iterator[bytes]:
        """The span of answering a request; gives the field `t` of the answer."""
        attributes = {**_of("reply"), "messaging.message.conversation_id": request.id}
        with self._sending(request.sender, attributes, "reply"):
            yield carried()

    def answered(self, field: bytes | None) -> None:
        """Links the requester's span to that of the answer, which may belong to another trace."""
        of_answer = _span_context_of(field)
        if of_answer.is_valid:
            trace.get_current_span().add_link(of_answer)

    def continuing(self, field: bytes | None) -> AbstractContextManager[object]:
        """Makes the span in a field `t` the current one if there is no other."""
        current = trace.get_current_span()
        if not current.get_span_context().is_valid:
            current = NonRecordingSpan(_span_context_of(field))
        return trace.use_span(current, record_exception=False, set_status_on_exception=False)

    def handling(self, delivery: TracedDelivery, group: str) -> Handling:
        """The span of handling a message: a child of the sender's span."""
        attributes = {
            **_of_message(delivery.message, "process"),
            "messaging.destination.name": delivery.stream,
            "messaging.consumer.group.name": group,
            "agentstream.entry": delivery.entry,
            "agentstream.attempt": delivery.attempt,
        }
        if delivery.replay is not None:
            attributes["agentstream.replay"] = delivery.replay
        span = self._tracer.start_span(
            f"process {delivery.stream}",
            context=_context_of(delivery.trace_context),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
        )
        return Handling(span)

    def handling_many(self, deliveries: Sequence[TracedDelivery]) -> Handling:
        """The span of handling a batch, with links to the senders' spans."""
        stream = deliveries[0].stream
        attributes = {
            **_of("process"),
            "messaging.destination.name": stream,
            "messaging.batch.message_count": len(deliveries),
        }
        span = self._tracer.start_span(
            f"process {stream}", kind=SpanKind.CONSUMER, attributes=attributes, links=list(_links(deliveries))
        )
        return Handling(span)

    def _sending(self, where: str, attributes: dict[str, AttributeValue], how: str = "send") -> Any:
        return self._tracer.start_as_current_span(
            f"{how} {where}", kind=SpanKind.PRODUCER, attributes=attributes
        )


def carried() -> bytes:
    """The field `t` for the current span; empty without one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    parent, state = carrier.get("traceparent", ""), carrier.get("tracestate", "")
    field = f"{parent};{state}" if state else parent
    return (field if len(field) <= _LONGEST else parent).encode()


def _context_of(field: bytes | None) -> Context:
    """The context in a field `t`; an empty one if it cannot be read."""
    if field is None or len(field) > _LONGEST:
        return Context()
    parent, _, state = field.decode("ascii", errors="replace").partition(";")
    return _propagator.extract({"traceparent": parent, "tracestate": state}, context=Context())


def _span_context_of(field: bytes | None) -> SpanContext:
    return trace.get_current_span(_context_of(field)).get_span_context()


def _links(deliveries: Iterable[TracedDelivery]) -> Iterable[Link]:
    for delivery in deliveries:
        of_sender = _span_context_of(delivery.trace_context)
        if of_sender.is_valid:
            yield Link(of_sender, {"messaging.message.id": delivery.message.id})


def _of(operation: str) -> dict[str, AttributeValue]:
    kind = "process" if operation == "process" else "send"
    return {
        "messaging.system": "agentstream",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }


def _of_message(message: Message, operation: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        **_of(operation),
        "messaging.message.id": message.id,
        "agentstream.from": message.sender,
        "agentstream.to": message.to,
        "agentstream.type": message.type,
    }
    if message.correlation_id is not None:
        attributes["messaging.message.conversation_id"] = message.correlation_id
    return attributes


def _sent_to(span: Span, stream: str) -> None:
    span.update_name(f"send {stream}")
    span.set_attribute("messaging.destination.name", stream)
