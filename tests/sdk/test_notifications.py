"""Notifications: whoever listens hears them, and nobody else ever will."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator

import pytest

from agentstream import Notification, Notifications
from agentstream.agent import Agent
from agentstream.errors import ConnectionLost, InvalidMessage
from agentstream.protocol.keys import notify_channel
from agentstream.sending.notifications import notification
from agentstream.testing.faults import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology
from support.waiting import until

CODER = notify_channel("agentstream", "test", "coder")
EVERYBODY = notify_channel("agentstream", "test", "broadcast")


@pytest.fixture
async def topology(server: Server, wire: Client) -> Topology:
    return Topology(wire, server.url)


@pytest.fixture
async def planner(topology: Topology) -> AsyncIterator[Agent]:
    async with topology.agent("planner") as agent:
        yield agent


async def heard_by(wire: Client, count: int, channel: str = EVERYBODY) -> None:
    """Waits until so many connections listen to a channel."""

    async def do() -> bool:
        return (await wire.call("PUBSUB", "NUMSUB", channel))[1] == count

    await until(do)


async def following(notes: Notifications) -> Notification:
    async with asyncio.timeout(10):
        return await anext(notes)


async def test_an_agent_hears_what_it_is_told(topology: Topology, planner: Agent, wire: Client) -> None:
    async with topology.agent("coder") as coder, coder.notifications() as notes:
        await heard_by(wire, 1)
        before = time.time()
        assert await planner.notify("coder", {"n": 1}) == 1
        note = await following(notes)
    assert (note.sender, note.payload) == ("planner", {"n": 1})
    assert before <= note.timestamp <= time.time()


async def test_only_the_addressee_hears_it(topology: Topology, planner: Agent, wire: Client) -> None:
    async with topology.agent("coder") as coder, topology.agent("tester") as tester:
        at_coder, at_tester = coder.notifications(), tester.notifications()
        await heard_by(wire, 2)
        assert await planner.notify("coder", {"n": 1}) == 1
        assert await planner.notify("broadcast", {"n": 2}) == 2
        assert [(await following(at_coder)).payload["n"] for _ in range(2)] == [1, 2]
        assert (await following(at_tester)).payload["n"] == 2


async def test_what_nobody_hears_is_lost(topology: Topology, planner: Agent, wire: Client) -> None:
    assert await planner.notify("coder", {"n": 1}) == 0
    async with topology.agent("coder") as coder, coder.notifications() as notes:
        await heard_by(wire, 1)
        await planner.notify("coder", {"n": 2})
        assert (await following(notes)).payload == {"n": 2}


async def test_each_listener_of_a_process_hears_everything(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    async with topology.agent("coder") as coder, coder.notifications() as one, coder.notifications() as two:
        await heard_by(wire, 1)
        # they share a connection
        assert await planner.notify("coder", {"n": 1}) == 1
        for notes in (one, two):
            assert (await following(notes)).payload == {"n": 1}


async def test_a_listener_that_is_slow_keeps_the_newest_and_counts_the_others(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    async with topology.agent("coder") as coder, coder.notifications(buffer=3) as notes:
        async with coder.notifications() as all_of_them:
            await heard_by(wire, 1)
            for n in range(10):
                await planner.notify("coder", {"n": n})
            assert [(await following(all_of_them)).payload["n"] for _ in range(10)] == list(range(10))
        assert notes.dropped == 7
        assert [(await following(notes)).payload["n"] for _ in range(3)] == [7, 8, 9]


async def test_a_listener_listens_again_after_its_connection_broke(
    topology: Topology, planner: Agent, proxy: Faults, wire: Client
) -> None:
    async with topology.agent("coder", url=proxy.url) as coder, coder.notifications() as notes:
        await heard_by(wire, 1)
        with proxy.refuse():
            await heard_by(wire, 0)
            assert await planner.notify("coder", {"n": 1}) == 0
        await heard_by(wire, 1)
        assert await planner.notify("coder", {"n": 2}) == 1
        assert (await following(notes)).payload == {"n": 2}


async def test_several_tasks_share_the_notifications_of_an_iterator(
    topology: Topology, planner: Agent, wire: Client
) -> None:
    async with topology.agent("coder") as coder, coder.notifications() as notes:
        tasks = [asyncio.create_task(following(notes)) for _ in range(3)]
        await heard_by(wire, 1)
        for n in range(3):
            await planner.notify("coder", {"n": n})
        assert sorted([(await task).payload["n"] for task in tasks]) == [0, 1, 2]


async def test_iterating_ends_when_the_agent_stops(topology: Topology, planner: Agent, wire: Client) -> None:
    async with topology.agent("coder") as coder:
        notes = coder.notifications()
        await heard_by(wire, 1)
        await planner.notify("coder", {"n": 1})

        async def all_of_them() -> list[int]:
            seen = []
            async for note in notes:
                seen.append(note.payload["n"])
                coder.stop()
            return seen

        async with asyncio.timeout(10):
            assert await all_of_them() == [1]
        assert [note async for note in coder.notifications()] == []
        await heard_by(wire, 0)


async def test_iterating_ends_when_the_agent_is_closed(topology: Topology, wire: Client) -> None:
    async with topology.agent("coder") as coder:
        waiting = asyncio.create_task(anext(coder.notifications(), None))
        await heard_by(wire, 1)
    assert await waiting is None


async def test_who_leaves_the_loop_listens_no_more(topology: Topology, planner: Agent, wire: Client) -> None:
    async with topology.agent("coder") as coder:

        async def the_first() -> int:
            async for note in coder.notifications():
                return int(note.payload["n"])
            return -1

        first = asyncio.create_task(the_first())
        await heard_by(wire, 1)
        await planner.notify("coder", {"n": 1})
        assert await first == 1
        del first
        gc.collect()
        await heard_by(wire, 0)


async def test_what_is_no_notification_is_dropped(
    topology: Topology, planner: Agent, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with topology.agent("coder") as coder, coder.notifications() as notes:
        await heard_by(wire, 1)
        for data in (b"{", b"\xff", b"[" * 5_000, b"{}"):
            await wire.call("PUBLISH", CODER, data)
        await planner.notify("coder", {"n": 1})
        assert (await following(notes)).payload == {"n": 1}
    assert caplog.text.count("no notification") == 4


async def test_what_json_cannot_hold_is_refused(planner: Agent) -> None:
    for payload in ({"n": object()}, {"s": "\ud800"}, [1]):
        with pytest.raises(InvalidMessage):
            await planner.notify("coder", payload)


async def test_a_slow_listener_keeps_no_more_than_a_few_megabytes(topology: Topology, wire: Client) -> None:
    async with topology.agent("coder") as coder, coder.notifications() as notes:
        await heard_by(wire, 1)
        for n in range(40):
            await wire.call("PUBLISH", CODER, notification("a", {"n": n, "more": "x" * (1 << 20)}))
        await until(lambda: notes.dropped == 25)
        assert [(await following(notes)).payload["n"] for _ in range(15)] == list(range(25, 40))
        # one alone may have more
        await wire.call("PUBLISH", CODER, notification("a", {"more": "x" * (17 << 20)}))
        await wire.call("PUBLISH", CODER, notification("a", {"n": 40}))
        await until(lambda: notes.dropped == 26)
        assert (await following(notes)).payload == {"n": 40}


async def test_a_buffer_holds_something(planner: Agent) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        planner.notifications(buffer=0)


async def test_a_notification_is_not_tried_again(
    topology: Topology, proxy: Faults, planner: Agent, wire: Client
) -> None:
    async with (
        topology.agent("tester", url=proxy.url) as tester,
        topology.agent("coder") as coder,
        coder.notifications() as notes,
    ):
        await heard_by(wire, 1)
        proxy.lose_reply("PUBLISH")
        with pytest.raises(ConnectionLost):
            await tester.notify("coder", {"n": 1})
        await planner.notify("coder", {"n": 2})
        assert [(await following(notes)).payload["n"] for _ in range(2)] == [1, 2]


async def test_an_iterator_may_outlive_its_loop(topology: Topology) -> None:
    async def listen() -> Notifications:
        async with topology.agent("coder") as coder:
            return coder.notifications()

    notes = await asyncio.to_thread(lambda: asyncio.run(listen()))
    del notes
    gc.collect()
