"""Traces go on across messages, handlers and answers: spans are connected, and say what went wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from agentstream import Backpressure, Message, NoReply, OutgoingMessage, Reject, RequestFailed, Retry, sync
from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.telemetry import spans, tracing
from agentstream.transport.client import Client
from support.topology import Topology, fields_of, following
from support.tracing import is_child, spans_of
from support.waiting import until


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder", max_deliveries=3)
    return topology


async def test_handling_is_a_child_of_sending(topology: Topology, exported: InMemorySpanExporter) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        with trace.get_tracer("test").start_as_current_span("work"):
            sent = await planner.send_message(
                to="coder", type="event", payload={"n": 1}, correlation_id="conversation"
            )
        async with await following(coder.stream_consume("tasks")) as delivery:
            inside = trace.get_current_span()
        assert not trace.get_current_span().get_span_context().is_valid
    (work,) = spans_of(exported, "work")
    (send,) = spans_of(exported, "send tasks")
    (process,) = spans_of(exported, "process tasks")
    assert is_child(send, work)
    assert is_child(process, send)
    assert inside.get_span_context() == process.context
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    shared = {
        "messaging.system": "agentstream",
        "messaging.destination.name": "tasks",
        "messaging.message.id": sent.id,
        "messaging.message.conversation_id": "conversation",
        "agentstream.from": "planner",
        "agentstream.to": "coder",
        "agentstream.type": "event",
        "agentstream.entry": sent.entry,
    }
    assert send.attributes
    assert process.attributes
    size = send.attributes["messaging.message.body.size"]
    assert isinstance(size, int)
    assert size > 100
    assert dict(send.attributes) == {
        **shared,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.body.size": size,
    }
    assert dict(process.attributes) == {
        **shared,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "coder",
        "agentstream.attempt": 1,
        "agentstream.outcome": "ack",
    }
    assert delivery.trace_context is not None


async def test_every_attempt_is_a_child_of_sending_and_says_how_it_ended(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    errors = [LookupError("as ever"), Retry("later", after=0.0), Reject("NoUse")]
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_message(to="coder", type="event", payload={})
        deliveries = coder.stream_consume("tasks")
        for error in errors:
            async with await following(deliveries):
                raise error
    (send,) = spans_of(exported, "send tasks")
    first, second, third = spans_of(exported, "process tasks")
    assert all(is_child(span, send) for span in (first, second, third))
    assert [span.status.status_code for span in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.ERROR,
    ]
    assert first.status.description == "LookupError: as ever"
    assert [event.name for event in first.events] == ["exception"]
    outcomes = [(span.attributes or {})["agentstream.outcome"] for span in (first, second, third)]
    assert outcomes == ["retry", "retry", "dead_letter"]


async def test_a_handler_that_is_cancelled_says_so(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_message(to="coder", type="event", payload={})
        delivery = await following(coder.stream_consume("tasks"))

        async def handle() -> None:
            async with delivery:
                await asyncio.Event().wait()

        handling = asyncio.create_task(handle())
        await asyncio.sleep(0)
        handling.cancel()
        await asyncio.gather(handling, return_exceptions=True)
    (process,) = spans_of(exported, "process tasks")
    assert (process.status.status_code, process.status.description) == (StatusCode.ERROR, "cancelled")
    assert (process.attributes or {})["agentstream.outcome"] == "release"


async def test_sending_that_fails_says_why(
    topology: Topology, wire: Client, exported: InMemorySpanExporter
) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with topology.agent("planner") as planner:
        with pytest.raises(Backpressure):
            await planner.send_message(to="coder", type="event", payload={}, on_full="raise")
        assert (await planner.send_message(to="coder", type="event", payload={}, on_full="shed")).shed
    failed, shed = spans_of(exported, "send coder")
    assert failed.status.status_code is StatusCode.ERROR
    assert shed.status.status_code is StatusCode.UNSET


async def test_many_messages_have_one_span(topology: Topology, exported: InMemorySpanExporter) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_many(OutgoingMessage(to="coder", type="event", payload={}) for _ in range(3))
        deliveries = coder.stream_consume("tasks")
        for _ in range(3):
            async with await following(deliveries):
                pass
    (send,) = spans_of(exported, "send tasks")
    assert (send.attributes or {})["messaging.batch.message_count"] == 3
    handled = spans_of(exported, "process tasks")
    assert len(handled) == 3
    assert all(is_child(span, send) for span in handled)


async def test_a_batch_is_linked_to_what_was_sent(topology: Topology, exported: InMemorySpanExporter) -> None:
    seen: list[trace.SpanContext] = []
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("event", batch_size=2, max_wait=5.0)
        def handle(deliveries: list[Delivery[dict[str, Any]]]) -> None:
            seen.append(trace.get_current_span().get_span_context())
            raise LookupError

        running = asyncio.create_task(coder.run())
        for _ in range(2):
            await planner.send_message(to="coder", type="event", payload={})
        await until(lambda: spans_of(exported, "process tasks"))
        coder.stop()
        await running
    first = spans_of(exported, "process tasks")[0]
    assert first.context == seen[0]
    assert first.parent is None
    assert first.status.status_code is StatusCode.ERROR
    assert (first.attributes or {})["messaging.batch.message_count"] == 2
    senders = {span.context.span_id for span in spans_of(exported, "send tasks") if span.context}
    assert {link.context.span_id for link in first.links} == senders


async def test_a_thread_has_the_span_of_what_it_handles(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    def work() -> trace.SpanContext:
        planner = sync.Agent.connect(topology.settings("planner"))
        coder = sync.Agent.connect(topology.settings("coder"))
        with planner, coder, trace.get_tracer("test").start_as_current_span("work"):
            planner.send_message(to="coder", type="event", payload={})
            with next(coder.stream_consume("tasks")):
                inside = trace.get_current_span().get_span_context()
            assert trace.get_current_span().get_span_context() != inside
        return inside

    inside = await asyncio.to_thread(work)
    (outer,) = spans_of(exported, "work")
    (send,) = spans_of(exported, "send tasks")
    (process,) = spans_of(exported, "process tasks")
    assert is_child(send, outer)
    assert is_child(process, send)
    assert process.context == inside
    assert (process.attributes or {})["agentstream.outcome"] == "ack"


async def test_the_field_is_trace_context(
    topology: Topology, wire: Client, exported: InMemorySpanExporter
) -> None:
    state = TraceState([("vendor", "a;b")])
    upstream = SpanContext(0xA1, 0xB2, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        with trace.use_span(NonRecordingSpan(upstream)):
            await planner.send_message(to="coder", type="event", payload={})
        async with await following(coder.stream_consume("tasks")):
            assert trace.get_current_span().get_span_context().trace_state == state
    ((_, fields),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    (send,) = spans_of(exported, "send tasks")
    assert send.context
    expected = f"00-{0xA1:032x}-{send.context.span_id:016x}-01;vendor=a;b"
    assert fields_of(fields)["t"].decode() == expected


@pytest.mark.parametrize("field", [b"", b"nonsense", b"\xff;\xff", b"00-" + b"0" * 2000])
async def test_a_field_that_cannot_be_read_begins_a_trace(
    topology: Topology, wire: Client, exported: InMemorySpanExporter, field: bytes
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        await planner.send_message(to="coder", type="event", payload={})
        ((entry, fields),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
        await wire.call("XDEL", "{test.tasks}", entry)
        await wire.call("XADD", "{test.tasks}", "*", "m", fields_of(fields)["m"], "t", field)
        async with await following(coder.stream_consume("tasks")):
            pass
    (process,) = spans_of(exported, "process tasks")
    assert process.parent is None


def test_a_state_that_is_too_long_is_left_out(exported: InMemorySpanExporter) -> None:
    state = TraceState([(f"vendor{n}", "x" * 250) for n in range(8)])
    upstream = SpanContext(0xA1, 0xB2, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    with trace.use_span(NonRecordingSpan(upstream)):
        assert spans.carried() == b"00-%032x-%016x-01" % (0xA1, 0xB2)


UNTRACED = """
import asyncio
from agentstream.agent import Agent
async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                await agent.send_message(to="planner", type="event", payload={})
            return
asyncio.run(main())
"""


async def test_who_has_no_provider_passes_on_the_trace_of_what_it_handles(
    topology: Topology, wire: Client, exported: InMemorySpanExporter
) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={})
    environ = {"AGENTSTREAM_URL": topology.url, "AGENTSTREAM_NAMESPACE": "test", "AGENTSTREAM_AGENT": "coder"}
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", UNTRACED], env=environ, capture_output=True, check=False
    )
    assert ended.stderr == b""
    ((_, asked),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    ((_, said),) = await wire.call("XRANGE", "{test.results}", "-", "+")
    assert fields_of(said)["t"] == fields_of(asked)["t"]


WITHOUT = """
import asyncio, sys
{before}
from agentstream.agent import Agent
assert "opentelemetry.trace" not in sys.modules
async def main():
    async with Agent.from_env() as agent:
        await agent.send_message(to="coder", type="event", payload={{}})
asyncio.run(main())
print(sorted(name for name in sys.modules if name == "opentelemetry.trace"))
"""


@pytest.mark.parametrize(
    ("before", "loaded"), [("", ["opentelemetry.trace"]), ("sys.modules['opentelemetry'] = None", [])]
)
async def test_it_is_loaded_by_the_first_message_and_only_where_it_is_installed(
    topology: Topology, wire: Client, before: str, loaded: list[str]
) -> None:
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": "test",
        "AGENTSTREAM_AGENT": "planner",
    }
    command = [sys.executable, "-c", WITHOUT.format(before=before)]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == (f"{loaded}\n", "")
    ((_, fields),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    # no provider, no trace
    assert set(fields_of(fields)) == {"m"}


def leads_to(asking: ReadableSpan, reply: ReadableSpan) -> bool:
    """Whether the span of who asked says which answer it got."""
    assert reply.context
    found = [(link.context.trace_id, link.context.span_id) for link in asking.links]
    return found == [(reply.context.trace_id, reply.context.span_id)]


async def asked(planner: Agent, coder: Agent) -> Message:
    """The answer to a request that the handlers of an agent serve."""
    serving = asyncio.create_task(coder.run())
    try:
        return await planner.request(to="coder", payload={"n": 1})
    finally:
        coder.stop()
        await serving


async def test_a_request_and_its_answer_are_one_trace(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("task_request")
        def handle(message: Message) -> dict[str, int]:
            return {"n": message.payload["n"] + 1}

        assert (await asked(planner, coder)).payload == {"n": 2}
        with pytest.raises(NoReply):
            await planner.request(to="coder", payload={"n": 1}, timeout=0.05)
    request, unanswered = spans_of(exported, "request coder")
    send, _ = spans_of(exported, "send tasks")
    (process,) = spans_of(exported, "process tasks")
    (reply,) = spans_of(exported, "reply planner")
    assert is_child(send, request)
    assert is_child(process, send)
    assert is_child(reply, process)
    assert leads_to(request, reply)
    assert (request.kind, reply.kind) == (SpanKind.CLIENT, SpanKind.PRODUCER)
    assert unanswered.status.status_code is StatusCode.ERROR
    assert not unanswered.links


async def test_an_answer_out_of_a_batch_is_found_by_who_waits_for_it(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("task_request", batch_size=2, max_wait=0.01)
        async def handle(batch: list[Delivery]) -> None:
            for delivery in batch:
                await delivery.reply({})

        await asked(planner, coder)
    (request,) = spans_of(exported, "request coder")
    (process,) = spans_of(exported, "process tasks")
    (reply,) = spans_of(exported, "reply planner")
    assert is_child(reply, process)
    assert leads_to(request, reply)


async def test_an_answer_outside_of_a_handler_is_of_the_trace_of_the_request(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        delivery = await following(coder.stream_consume("tasks"))
        await delivery.reply({})
        await delivery.ack()
        await asking
    (request,) = spans_of(exported, "request coder")
    (send,) = spans_of(exported, "send tasks")
    (reply,) = spans_of(exported, "reply planner")
    assert is_child(reply, send)
    assert leads_to(request, reply)


async def test_an_answer_to_what_is_not_traced_begins_a_trace(
    topology: Topology, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.telemetry.spans.carried", lambda: b"")
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        delivery = await following(coder.stream_consume("tasks"))
        assert delivery.trace_context is None
        await delivery.reply({})
        await delivery.ack()
        await asking
    (request,) = spans_of(exported, "request coder")
    (reply,) = spans_of(exported, "reply planner")
    assert reply.parent is None
    assert not request.links


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """OpenTelemetry is not installed."""
    monkeypatch.setitem(sys.modules, "agentstream.telemetry.spans", None)
    tracing._installed.cache_clear()
    yield
    tracing._installed.cache_clear()


@pytest.mark.usefixtures("not_installed")
async def test_answers_arrive_where_it_is_not_installed(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("task_request", batch_size=1)
        async def handle(batch: list[Delivery]) -> None:
            await batch[0].reply({"n": 2})

        assert (await asked(planner, coder)).payload == {"n": 2}
    assert not exported.get_finished_spans()


async def test_that_a_request_was_given_up_is_no_answer_to_be_found(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("task_request")
        async def handle(task: dict) -> None:
            raise Reject("NoUse")

        with pytest.raises(RequestFailed):
            await asked(planner, coder)
    (request,) = spans_of(exported, "request coder")
    (process,) = spans_of(exported, "process tasks")
    assert not request.links
    assert request.context
    assert process.context
    assert process.context.trace_id == request.context.trace_id


async def test_an_answer_that_nobody_waits_for_is_a_child_of_handling(
    topology: Topology, exported: InMemorySpanExporter
) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        @coder.on("task_request")
        async def handle(task: dict) -> dict:
            return task

        serving = asyncio.create_task(coder.run())
        await planner.send_message(to="coder", type="task_request", payload={})
        async with await following(planner.stream_consume("results")):
            pass
        coder.stop()
        await serving
    (handled,) = spans_of(exported, "process tasks")
    (send,) = spans_of(exported, "send results")
    (received,) = spans_of(exported, "process results")
    assert is_child(send, handled)
    assert is_child(received, send)


async def sends_in_a_handler(topology: Topology) -> None:
    async with topology.agent("coder") as coder:

        @coder.on("event")
        async def handle(event: dict) -> None:
            await coder.send_message(to="tester", type="event", payload={})
            await coder.send_many([OutgoingMessage(to="tester", type="event", payload={})])
            await coder.broadcast(type="event", payload={})

        await _served(coder, topology)


async def sends_in_a_batch(topology: Topology) -> None:
    async with topology.agent("coder") as coder:

        @coder.on("event", batch_size=1)
        async def handle(batch: list[Delivery]) -> None:
            await coder.send_message(to="tester", type="event", payload={})
            await coder.send_many([OutgoingMessage(to="tester", type="event", payload={})])
            await coder.broadcast(type="event", payload={})

        await _served(coder, topology)


async def sends_in_a_thread(topology: Topology) -> None:
    coder = sync.Agent.connect(topology.settings("coder"))

    @coder.on("event")
    def handle(event: dict[str, Any]) -> None:
        coder.send_message(to="tester", type="event", payload={})
        coder.send_many([OutgoingMessage(to="tester", type="event", payload={})])
        coder.broadcast(type="event", payload={})

    await _served(coder, topology)


async def _served(coder: Agent | sync.Agent, topology: Topology) -> None:
    """Has the handlers of an agent handle one event."""
    if isinstance(coder, Agent):
        serving = asyncio.create_task(coder.run())
    else:
        serving = asyncio.create_task(asyncio.to_thread(_run, coder))
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={})
    await until(lambda: topology.settled(topology.routes["coder"].consumes[0], 1))
    coder.stop()
    await serving


def _run(coder: sync.Agent) -> None:
    with coder:
        coder.run()


@pytest.mark.parametrize("handling", [sends_in_a_handler, sends_in_a_batch, sends_in_a_thread])
async def test_what_a_handler_sends_is_a_child_of_handling(
    topology: Topology, exported: InMemorySpanExporter, handling: Callable[[Topology], Any]
) -> None:
    await topology.stream("checks", "coder")
    await topology.group("checks", "tester")
    await topology.stream("news", "coder", broadcast=True)
    await handling(topology)
    (process,) = spans_of(exported, "process tasks")
    sent = [*spans_of(exported, "send checks"), *spans_of(exported, "send news")]
    assert [is_child(send, process) for send in sent] == [True] * 3
