"""Traces go on where a handler answers and sends: whoever waits finds the way to the span of its answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from agentstream import Delivery, Message, NoReply, OutgoingMessage, Reject, RequestFailed, sync
from agentstream.agent import Agent
from agentstream.telemetry import tracing
from support.topology import Topology, following
from support.tracing import is_child, spans_of
from support.waiting import until


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder")
    return topology


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
