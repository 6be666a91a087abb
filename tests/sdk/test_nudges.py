"""Nudges: what an agent's processes find out by themselves, only later, they are told at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from agentstream.consuming.delivery import Delivery
from agentstream.consuming.session import Deliveries
from agentstream.protocol import commands
from agentstream.protocol.keys import Nudge, nudge_channel
from agentstream.protocol.routes import Consumes, Route
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream.transport.subscriptions import Subscriptions
from support.servers import Server
from support.topology import NAMESPACE, Topology, following, numbers, send
from support.waiting import until

NUDGES = nudge_channel("agentstream", NAMESPACE, "coder")


@pytest.fixture
async def topology(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> Topology:
    """`planner` produces to `tasks`. Without a nudge nobody looks for what is stalled."""
    monkeypatch.setattr("agentstream.consuming.fetch._SWEEP_INTERVAL", 3_600_000)
    return topology


async def listeners(topology: Topology, channel: str = NUDGES) -> int:
    """How many connections listen to a channel."""
    return int((await topology.wire.call("PUBSUB", "NUMSUB", channel))[1])


async def waits(topology: Topology, count: int) -> bool:
    """Whether so many consumers wait for something new, have swept, and listen."""
    clients = (await topology.wire.call("CLIENT", "LIST")).decode().splitlines()
    blocked = sum("read-tasks" in client and "cmd=xreadgroup" in client for client in clients)
    return blocked == await listeners(topology) == count


async def held_by_gone(topology: Topology, group: Consumes, *payloads: int) -> None:
    """Messages that a consumer holds which is gone; its lease is not over."""
    await send(topology, *payloads)
    await topology.wire.call("XREADGROUP", "GROUP", group.group, "gone.1", "STREAMS", group.key, ">")


async def free(topology: Topology, group: Consumes) -> None:
    """Lets anybody claim what that consumer holds, and says so."""
    gone = ("gone", None)
    command = commands.release_pod(group.key, group.group, gone, "-", for_good=False, retries=False)
    assert (await topology.wire.call(*command))[1]
    assert await topology.wire.call("PUBLISH", NUDGES, Nudge.SWEEP)


async def test_what_anybody_may_claim_is_claimed_at_once(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await held_by_gone(topology, group, *range(30))
    async with (
        topology.agent("coder", pod="a") as first,
        topology.agent("coder", pod="b") as second,
        first.stream_consume("tasks", concurrency=10) as some,
        second.stream_consume("tasks", concurrency=20) as others,
    ):
        working = [asyncio.create_task(acquire(some, 10)), asyncio.create_task(acquire(others, 20))]
        await until(lambda: waits(topology, 2))
        await free(topology, group)
        # each takes what it has slots for
        held = [delivery for deliveries in await asyncio.gather(*working) for delivery in deliveries]
        assert sorted(delivery.message.payload["n"] for delivery in held) == list(range(30))


async def acquire(deliveries: Deliveries[Any], count: int) -> list[Delivery[Any]]:
    """So many deliveries, none of them settled."""
    return [await following(deliveries) for _ in range(count)]


async def test_what_a_stopped_consumer_hands_back_another_one_has_at_once(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(10))
    async with topology.agent("coder", pod="a") as first, topology.agent("coder", pod="b") as second:
        held = first.stream_consume("tasks")
        delivery = await following(held)
        async with second.stream_consume("tasks") as deliveries:
            working = asyncio.create_task(numbers(deliveries, 10))
            await until(lambda: waits(topology, 2))
            assert len(await topology.pending(group)) == 10
            await held.aclose()
            assert not await delivery.ack()
            assert sorted(await working) == list(range(10))
            await until(lambda: topology.settled(group, 10))


async def test_a_changed_route_is_read_at_once(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: waits(topology, 1))
        topology.routes["coder"] = Route(consumes=(msgspec.structs.replace(group, max_deliveries=1),))
        await topology.write_routes()
        assert await wire.call("PUBLISH", NUDGES, Nudge.ROUTES) == 1
        await until(lambda: deliveries._consumption._dispatcher.policy.max_deliveries == 1)
        asking.cancel()


async def test_a_word_that_nobody_knows_is_passed_over(topology: Topology, wire: Client) -> None:
    await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: waits(topology, 1))
        assert await wire.call("PUBLISH", NUDGES, "dance") == 1
        await send(topology, 1)
        assert await (await asking).ack()


async def connections(topology: Topology) -> set[str]:
    """The ids of the agent's connections."""
    clients = (await topology.wire.call("CLIENT", "LIST")).decode().splitlines()
    return {client.split()[0] for client in clients if f"name=agentstream:{NAMESPACE}.coder" in client}


async def connected_again(topology: Topology, before: set[str]) -> bool:
    """Whether these connections are gone and a consumer waits for something new all the same."""
    return not before & await connections(topology) and await waits(topology, 1)


async def test_a_nudge_reaches_who_was_cut_off_before(topology: Topology, proxy: Faults) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await held_by_gone(topology, group, 1)
    async with topology.agent("coder", url=proxy.url) as coder:
        asking = asyncio.create_task(following(coder.stream_consume("tasks")))
        await until(lambda: waits(topology, 1))
        before = await connections(topology)
        proxy.cut()
        await until(lambda: connected_again(topology, before))
        await free(topology, group)
        assert await (await asking).ack()


@pytest.fixture
async def subscriptions(server: Server) -> AsyncIterator[Subscriptions]:
    """Channels of a process that listens to none yet."""
    listening = Subscriptions(lambda **options: Client(lambda: Endpoint(server.url), name="push", **options))
    yield listening
    await listening.close()


async def test_handlers_of_several_channels_share_one_connection(
    server: Server, topology: Topology, subscriptions: Subscriptions
) -> None:
    heard: list[tuple[str, bytes]] = []
    for channel in ("a", "b", "b"):
        subscriptions.listen(channel, lambda data, channel=channel: heard.append((channel, data)))
    await until(lambda: listeners(topology, "b"))
    for channel in ("a", "b", "c"):
        await topology.wire.call("PUBLISH", channel, channel.upper())
    await until(lambda: len(heard) == 3)
    assert heard == [("a", b"A"), ("b", b"B"), ("b", b"B")]
    assert server.connections().count("push") == 1


async def test_a_channel_that_comes_later_is_heard_too_and_one_that_goes_is_not(
    server: Server, topology: Topology, subscriptions: Subscriptions
) -> None:
    heard: list[bytes] = []
    end = subscriptions.listen("a", heard.append)
    await until(lambda: listeners(topology, "a"))
    subscriptions.listen("b", heard.append)
    await until(lambda: listeners(topology, "b"))
    assert await listeners(topology, "a") == 1
    end()
    await topology.wire.call("PUBLISH", "a", "no")
    await topology.wire.call("PUBLISH", "b", "yes")
    await until(lambda: heard)
    assert heard == [b"yes"]


async def test_the_connection_ends_with_the_last_handler_and_is_made_again_for_the_next(
    server: Server, topology: Topology, subscriptions: Subscriptions
) -> None:
    for _ in range(2):
        end = subscriptions.listen("a", print)
        await until(lambda: listeners(topology, "a"))
        end()
        await until(lambda: "push" not in server.connections())
