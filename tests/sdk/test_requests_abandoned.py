"""Requests that nobody waits for any more, and handlers that wait for their own agent."""

from __future__ import annotations

import asyncio
import contextlib
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agentstream import ConnectionLost, Message, NoReply, RequestFailed
from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.identity.keyring import Keyring
from agentstream.protocol.keys import cancel_channel, reply_key
from agentstream.sending.replies import Replies
from agentstream.sync import Agent as SyncAgent
from agentstream.transport.client import Client
from support.topology import Topology, following
from support.waiting import until

CODER = cancel_channel("agentstream", "test", "coder")
HOUR = 3_600


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` and `coder` produce to `tasks`, which `coder` consumes."""
    await topology.stream("tasks", "coder")
    await topology.group("tasks", "coder", max_deliveries=1, lease=10_000)
    return topology


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


@pytest.fixture
async def deliveries(declared: Topology, wire: Client) -> AsyncIterator[AsyncIterator[Delivery]]:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        yield deliveries


async def heard(wire: Client) -> None:
    async def listens() -> bool:
        return (await wire.call("PUBSUB", "NUMSUB", CODER))[1] == 1

    await until(listens)


async def given_up(asking: asyncio.Task[Message]) -> None:
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


async def too_late(asking: asyncio.Task[Message]) -> None:
    with pytest.raises(NoReply):
        await asking


@pytest.mark.parametrize(("ends", "timeout"), [(given_up, HOUR), (too_late, 0.5)])
async def test_a_request_that_ends_without_an_answer_tells_its_worker(
    planner: Agent,
    deliveries: AsyncIterator[Delivery],
    wire: Client,
    ends: Callable[[asyncio.Task[Message]], Awaitable[None]],
    timeout: float,
) -> None:
    # that it expires tells nobody anything here
    options: dict[str, Any] = {"to": "coder", "payload": {}, "expires_at": time.time() + HOUR}
    asking = asyncio.create_task(planner.request(timeout=timeout, **options))
    others = asyncio.create_task(planner.request(timeout=HOUR, **options))
    first, second = await following(deliveries), await following(deliveries)
    await heard(wire)
    assert not first.cancelled
    await ends(asking)
    await until(lambda: first.cancelled)
    assert not second.cancelled
    await second.reply({})
    await others
    assert not second.cancelled
    # what becomes of it is the handler's decision
    assert first.held
    assert await first.ack()
    assert await second.ack()


async def test_an_agent_that_is_left_tells_the_workers_of_its_requests(
    declared: Topology, deliveries: AsyncIterator[Delivery], wire: Client
) -> None:
    async with declared.agent("planner") as planner:
        asking = asyncio.create_task(planner.request(to="coder", payload={}, timeout=HOUR))
        delivery = await following(deliveries)
        await heard(wire)
    with pytest.raises(ConnectionLost, match="the agent was closed"):
        await asking
    await until(lambda: delivery.cancelled)
    assert await delivery.ack()


async def test_a_request_that_expired_is_cancelled_whoever_sent_it(
    planner: Agent, deliveries: AsyncIterator[Delivery]
) -> None:
    key = reply_key("test", "planner", "0123456789abcdef" * 2)
    expires_at = time.time() + 1
    for reply_to in (key, None):
        await planner.send_message(
            to="coder", type="task_request", payload={}, reply_to=reply_to, expires_at=expires_at
        )
    request, message = await following(deliveries), await following(deliveries)
    await until(lambda: time.time() > expires_at)
    assert request.cancelled
    assert not message.cancelled


async def test_who_does_not_know_the_reply_stream_can_cancel_nothing(
    planner: Agent, deliveries: AsyncIterator[Delivery], wire: Client
) -> None:
    asking = asyncio.create_task(planner.request(to="coder", payload={}))
    delivery = await following(deliveries)
    await heard(wire)
    for notice in (
        delivery.message.id,
        f"{delivery.message.id} {reply_key('test', 'planner', '0' * 32)}",
        b"\xff",
    ):
        assert await wire.call("PUBLISH", CODER, notice) == 1
    await delivery.reply({})
    await asking
    assert not delivery.cancelled
    await delivery.ack()


def test_notices_that_no_requester_publishes_are_not_kept() -> None:
    async def call(*_: Any) -> None:
        raise AssertionError

    replies = Replies("test", "coder", call, call, Keyring(lambda _: None))
    tracemalloc.start()
    for n in range(64):
        # any agent of the namespace may publish that
        replies.note_cancelled(b"%d %s" % (n, bytes(1 << 20)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1 << 20


@pytest.mark.parametrize(("depth", "concurrency"), [(1, 1), (2, 2), (3, 2), (1, 2), (2, 3), (0, 1)])
async def test_who_asks_itself_without_a_free_handler_is_told(
    declared: Topology, planner: Agent, depth: int, concurrency: int
) -> None:
    async with declared.agent("coder") as coder:

        @coder.on("task_request")
        async def ask(message: Message) -> dict[str, Any]:
            left = message.payload["depth"]
            if left:
                await coder.request(to="coder", payload={"depth": left - 1}, timeout=HOUR)
            return {"depth": left}

        running = asyncio.create_task(coder.run(concurrency=concurrency))
        async with asyncio.timeout(20):
            asking = planner.request(to="coder", payload={"depth": depth}, timeout=HOUR)
            if depth < concurrency:
                assert (await asking).payload == {"depth": depth}
            else:
                with pytest.raises(RequestFailed, match=f"asks itself, and all its {concurrency} handlers"):
                    await asking
            coder.stop()
            await running


async def test_a_loop_that_asks_itself_is_told(declared: Topology, planner: Agent) -> None:
    await planner.send_message(to="coder", type="event", payload={})
    async with (
        declared.agent("coder") as coder,
        coder.stream_consume("tasks") as deliveries,
        asyncio.timeout(10),
    ):
        async with await following(deliveries) as delivery:
            with pytest.raises(NoReply, match="asks itself"):
                await coder.request(to="coder", payload={})
        # outside of a handler it may ask: somebody else may answer
        asking = asyncio.create_task(coder.request(to="coder", payload={}))
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 1})
        assert (await asking).payload == {"n": 1}


async def test_a_thread_that_asks_itself_is_told(declared: Topology, planner: Agent) -> None:
    def consume() -> None:
        with SyncAgent.connect(declared.settings("coder")) as coder:

            @coder.on("task_request")
            def ask(message: Message) -> dict[str, Any]:
                try:
                    coder.request(to="coder", payload={}, timeout=HOUR)
                except NoReply as error:
                    return {"error": str(error)}
                finally:
                    coder.stop()
                return {}

            coder.run(concurrency=1)

    running = asyncio.create_task(asyncio.to_thread(consume))
    async with asyncio.timeout(20):
        answer = await planner.request(to="coder", payload={}, timeout=HOUR)
        await running
    assert "asks itself" in answer.payload["error"]
