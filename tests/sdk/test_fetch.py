"""Fetching: nothing is out of a consumer's reach, slots bound what it holds, and what is passed on."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.consuming.hold import CLAIMED, Hold, claimed_holds
from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import Nudge, StreamKeys, nudge_channel
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import Gone
from support.monitor import sent_meanwhile
from support.peers import hanging_up_late, listening
from support.servers import Server
from support.topology import HANDED_BACK, NAMESPACE, Topology, following, numbers, send
from support.waiting import until

NUDGES = nudge_channel("agentstream", NAMESPACE, "coder")


async def abandoned(topology: Topology, group: Consumes, count: int, *, retries: bool = False) -> None:
    """Has a consumer that is gone hold entries, which anybody may claim."""
    key = StreamKeys(group.key).retry(group.group) if retries else group.key
    who = (group.group, "gone.1")
    await topology.wire.call("XREADGROUP", "GROUP", *who, "COUNT", count, "STREAMS", key, ">")
    gone, start, released = ("gone", None), "-", 0
    while start:
        command = commands.release_pod(group.key, group.group, gone, start, for_good=False, retries=retries)
        following, number = await topology.wire.call(*command)
        start, released = following.decode(), released + number
    assert released == count


async def handle(agent: Agent, handled: list[int], concurrency: int) -> None:
    """Handles everything until the agent stops."""
    async for delivery in agent.stream_consume("tasks", concurrency=concurrency):
        async with delivery:
            handled.append(delivery.message.payload["n"])


async def test_everything_that_a_dead_consumer_held_is_handled_once_however_much_it_is(
    server: Server, topology: Topology
) -> None:
    total, consumers, capacity = 10_000, 3, 64
    group = await topology.group("tasks", "coder", lease=10_000)
    await send(topology, *range(total))
    await abandoned(topology, group, total)
    handled: list[list[int]] = [[] for _ in range(consumers)]
    agents = [topology.agent("coder", pod=f"coder-{n}") for n in range(consumers)]

    async def take_over() -> None:
        working = [
            asyncio.create_task(handle(agent, mine, capacity))
            for agent, mine in zip(agents, handled, strict=True)
        ]
        await until(lambda: sum(map(len, handled)) >= total, timeout=60)
        for agent in agents:
            agent.stop()
        await asyncio.gather(*working)

    async with agents[0], agents[1], agents[2]:
        sent = Counter(await sent_meanwhile(server, take_over()))
    assert sorted(n for mine in handled for n in mine) == list(range(total))
    assert all(handled)
    # half of the slots are free at least when a consumer asks
    assert sent["as1_sweep"] < 2 * total / capacity + 100
    assert await topology.wire.call("XPENDING", group.key, "coder") == [0, None, None, None]


async def test_what_is_stalled_behind_many_that_are_not_is_found_in_one_pass(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(20_001))
    who = ("XREADGROUP", "GROUP", "coder")
    await wire.call(*who, "busy.1", "COUNT", 20_000, "STREAMS", group.key, ">")
    await abandoned(topology, group, 1)
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks", concurrency=1), 1) == [20_000]


async def test_what_is_stalled_is_claimed_although_new_messages_never_cease(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
        await send(topology, 0)
        delivery = await following(deliveries)
        await send(topology, -1, *range(1, 100))
        await abandoned(topology, group, 1)
        before = await _calls(topology)
        await until(lambda: topology.wire.call("PUBLISH", NUDGES, Nudge.SWEEP))
        # there was no slot for it
        await until(lambda: _has_called(topology, before))
        seen = []
        while -1 not in seen and len(seen) < 20:
            await delivery.ack()
            delivery = await following(deliveries)
            seen.append(delivery.message.payload["n"])
        assert -1 in seen


async def _calls(topology: Topology) -> int:
    """How many functions were called."""
    info = (await topology.wire.call("INFO", "commandstats")).decode()
    return int(info.partition("cmdstat_fcall:calls=")[2].partition(",")[0])


async def _has_called(topology: Topology, before: int) -> bool:
    return await _calls(topology) > before


async def test_a_due_retry_comes_although_all_slots_are_taken_by_what_waits(topology: Topology) -> None:
    await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(500))
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=4) as deliveries:
        delivery = await following(deliveries)
        await delivery.retry(after=0.05)
        for _ in range(20):
            delivery = await following(deliveries)
            await asyncio.sleep(0.01)
            await delivery.ack()
            if delivery.message.payload["n"] == 0:
                break
        assert (delivery.message.payload["n"], delivery.attempt) == (0, 2)


@pytest.mark.parametrize("held", [0, 13])
@pytest.mark.parametrize("stream", ["main", "retry"])
async def test_a_read_whose_reply_is_lost_strands_nothing_however_few_slots_are_free(
    topology: Topology, proxy: Faults, held: int, stream: str
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    key = group.key if stream == "main" else StreamKeys(group.key).retry("coder")
    async with topology.agent("coder", url=proxy.url) as coder:
        deliveries = coder.stream_consume("tasks", concurrency=16)
        await send(topology, *range(held + 1))
        running = [await following(deliveries) for _ in range(held + 1)]
        proxy.lose_reply(b"XREADGROUP")
        # what blocks already brings this one; the next read is the one whose reply is lost
        await send(topology, held + 1)
        running.append(await following(deliveries))
        await until(lambda: _blocks(topology))
        await topology.add_raw(key, body(held + 2))
        running.append(await following(deliveries))
        assert proxy.lost == 1
        assert [delivery.message.payload["n"] for delivery in running] == list(range(held + 3))
        assert [await delivery.ack() for delivery in running] == [True] * (held + 3)


async def _blocks(topology: Topology) -> bool:
    clients = (await topology.wire.call("CLIENT", "LIST")).decode().splitlines()
    return any("read-tasks" in client and "flags=b" in client for client in clients)


def body(n: int) -> bytes:
    """A message as it is on the stream."""
    return msgspec.json.encode(
        {
            "v": 1,
            "id": str(uuid.uuid4()),
            "from": "planner",
            "to": "coder",
            "type": "event",
            "payload": {"n": n},
            "timestamp": 1.0,
        }
    )


async def test_a_connection_that_falls_silent_is_given_up_and_what_it_brought_is_taken_up(
    topology: Topology, proxy: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentstream.consuming.fetch._BLOCK", 300)
    monkeypatch.setattr("agentstream.agent.READ_TIMEOUT", 0.6)
    await topology.group("tasks", "coder", lease=60_000)
    async with topology.agent("coder", url=proxy.url) as coder:
        asking = asyncio.create_task(following(coder.stream_consume("tasks")))
        await until(lambda: _blocks(topology))
        with proxy.hold():
            await send(topology, 1)
            # the server has given it away, and nobody has got it
            await until(lambda: topology.pending(topology.routes["coder"].consumes[0]))
            await until(lambda: any("no reply for 0.6 s" in record.message for record in caplog.records))
        delivery = await asking
        assert (delivery.message.payload, delivery.attempt) == ({"n": 1}, 2)
        assert await delivery.ack()


@pytest.fixture
async def untimed(topology: Topology) -> Consumes:
    """A group in which no lease runs out while a test runs."""
    return await topology.group("tasks", "coder", lease=600_000)


async def test_what_waits_behind_a_message_that_runs_alone_another_process_has_soon(
    topology: Topology, untimed: Consumes
) -> None:
    await send(topology, *range(6))
    await topology.left_behind(untimed, 2)
    async with topology.agent("coder", pod="one") as one, topology.agent("coder", pod="two") as two:
        # without it, what it holds would be handed back
        deliveries = one.stream_consume("tasks", concurrency=16)
        alone = await following(deliveries)
        assert alone.message.payload == {"n": 0}
        others = two.stream_consume("tasks", concurrency=16)
        taken = [await following(others) for _ in range(5)]
        assert sorted(delivery.message.payload["n"] for delivery in taken) == [1, 2, 3, 4, 5]
        # having waited was no attempt
        assert {delivery.attempt for delivery in taken} == {2}
        assert all([await delivery.ack() for delivery in (alone, *taken)])
    assert await topology.settled(untimed, 6)


async def test_suspects_go_to_as_many_processes_as_there_are(topology: Topology, untimed: Consumes) -> None:
    await send(topology, *range(3))
    await topology.left_behind(untimed, 2, 2, 2)
    async with (
        topology.agent("coder", pod="one") as one,
        topology.agent("coder", pod="two") as two,
        topology.agent("coder", pod="three") as three,
    ):
        each = [agent.stream_consume("tasks", concurrency=16) for agent in (one, two, three)]
        taken = await asyncio.gather(*(following(deliveries) for deliveries in each))
        assert sorted(delivery.message.payload["n"] for delivery in taken) == [0, 1, 2]
        assert {delivery.attempt for delivery in taken} == {3}
        assert all([await delivery.ack() for delivery in taken])
    assert await topology.settled(untimed, 3)


async def test_nothing_new_is_read_that_would_have_to_wait_behind_it(
    topology: Topology, untimed: Consumes
) -> None:
    await send(topology, 0)
    await topology.left_behind(untimed, 2)
    async with topology.agent("coder", pod="one") as one, topology.agent("coder", pod="two") as two:
        # without it, what it holds would be handed back
        deliveries = one.stream_consume("tasks", concurrency=16)
        alone = await following(deliveries)
        await send(topology, *range(1, 6))
        assert sorted(await numbers(two.stream_consume("tasks", concurrency=16), 5)) == [1, 2, 3, 4, 5]
        assert await alone.ack()


async def test_who_is_the_only_process_goes_on_by_itself(
    topology: Topology, untimed: Consumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.consuming.isolation._BEHIND", 0.02)
    await send(topology, *range(4))
    await topology.left_behind(untimed, 2)
    async with (
        topology.agent("coder", pod="one") as one,
        one.stream_consume("tasks", concurrency=16) as deliveries,
    ):
        alone = await following(deliveries)

        async def handed_back() -> bool:
            return sum(idle >= HANDED_BACK for _, _, idle, _ in await topology.pending(untimed)) == 3

        await until(handed_back)
        assert await alone.ack()
        assert sorted(await numbers(deliveries, 3)) == [1, 2, 3]
    assert await topology.settled(untimed, 4)


Give = Callable[[list[Hold]], Awaitable[None]]

LEASE, INTERVAL = 60_000, 2_000
GONE = "pod-a"


class Held:
    """A group with messages that a process that is no more has left behind.

    Args:
        topology: the server.
        group: the group.
    """

    def __init__(self, topology: Topology, group: Consumes) -> None:
        self.topology = topology
        self.call = topology.wire.call
        self.group = group
        self.calls = GroupCalls(group, f"{GONE}.1")

    async def leave_behind(self, count: int) -> list[str]:
        """Adds messages that a process took, and anybody may claim. Returns their ids."""
        for _ in range(count):
            await self.topology.add_raw(self.group.key, b"{}")
        return await self.topology.left_behind(self.group)

    async def claim(self, count: int, consumer: str = f"{GONE}.1") -> list[Hold]:
        """What a consumer gets of them, up to so many."""
        calls = GroupCalls(self.group, consumer)
        _, found, *_ = await self.call(*calls.sweep(LEASE, INTERVAL, count, now=True))
        return list(claimed_holds(found, calls.main, 0))


@pytest.fixture
async def held(topology: Topology) -> Held:
    """The group, which no real consumer reads."""
    return Held(topology, await topology.group("tasks", "coder", lease=LEASE))


@pytest.fixture(params=["handed back", "freed"])
def give(request: pytest.FixtureRequest, held: Held, broker: Broker) -> Give:
    """Makes what this consumer claimed anybody's."""

    async def hand_back(entries: list[Hold]) -> None:
        assert set(await held.call(*held.calls.release(held.calls.main, CLAIMED, entries))) == {DONE}

    async def free(entries: list[Hold]) -> None:
        assert await broker.release_pod(held.group.key, "coder", Gone(GONE)) == len(entries)

    return hand_back if request.param == "handed back" else free


async def test_a_renewal_that_comes_later_leaves_it_anybodys(held: Held, give: Give) -> None:
    await held.leave_behind(1)
    entries = await held.claim(1)
    await give(entries)
    assert await held.call(*held.calls.renew(held.calls.main, LEASE, entries)) == [DONE]
    ((_, _, idle, _),) = await held.topology.pending(held.group)
    assert idle >= HANDED_BACK


async def test_whoever_claims_next_begins_with_it(held: Held, give: Give) -> None:
    ids = await held.leave_behind(6)
    await give(await held.claim(3))
    assert [entry.id for entry in await held.claim(6, "other.1")] == ids


async def test_what_the_server_gives_before_it_hears_of_the_end_is_handed_back(
    topology: Topology, server: Server
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    ended, late = asyncio.Event(), asyncio.Event()
    async with listening(hanging_up_late(server.port, ended, late)) as port:
        async with topology.agent("coder", url=f"redis://127.0.0.1:{port}") as coder:
            deliveries = coder.stream_consume("tasks")
            asking = asyncio.create_task(anext(deliveries))
            await until(lambda: _waits_for_news(server))
            closing = asyncio.create_task(deliveries.aclose())
            await ended.wait()
            await send(topology, 1)
            assert await topology.pending(group)
            late.set()
            await closing
            with pytest.raises(StopAsyncIteration):
                await asking
    async with topology.agent("coder", pod="other") as other, other.stream_consume("tasks") as others:
        delivery = await following(others)
        assert delivery.attempt == 1
        assert await delivery.ack()
    assert await topology.settled(group, 1)


def _waits_for_news(server: Server) -> bool:
    with server.admin() as client:
        return any("b" in c["flags"] and c["cmd"] == "xreadgroup" for c in client.client_list())


@pytest.mark.parametrize("concurrency", [1, 2, 3])
async def test_no_more_is_held_than_was_said_whatever_waits(topology: Topology, concurrency: int) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(6))
    for _, fields in await topology.wire.call("XRANGE", group.key, "-", "+"):
        await topology.wire.call("XADD", StreamKeys(group.key).retry("coder"), "*", *fields)
    held = []
    async with topology.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks", concurrency=concurrency)
        for _ in range(12):
            delivery = await following(deliveries)
            pending = [await topology.pending(group, retries=retries) for retries in (False, True)]
            held.append(sum(map(len, pending)))
            assert await delivery.ack()
    assert max(held) <= concurrency
    assert (await topology.stats(group))["settled"] == 6


async def test_what_comes_while_the_last_slot_is_taken_by_a_claim_goes_to_others(
    topology: Topology, server: Server
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    await topology.wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "STREAMS", group.key, ">")
    async with topology.agent("coder", pod="one") as one, topology.agent("coder", pod="two") as two:
        mine = one.stream_consume("tasks", concurrency=1)
        first = asyncio.create_task(following(mine))
        await until(lambda: _waits_for_news(server))
        ((entry, *_),) = await topology.pending(group)
        free = ("XCLAIM", group.key, "coder", "gone.1", 0, entry, "IDLE", HANDED_BACK, "JUSTID")
        await topology.wire.call(*free)
        await topology.wire.call("PUBLISH", NUDGES, Nudge.SWEEP)
        claimed = await first
        await send(topology, 2)
        other = await following(two.stream_consume("tasks"))
        assert (other.message.payload, other.attempt) == ({"n": 2}, 1)
        assert await other.ack()
        assert await claimed.ack()
    assert await topology.settled(group, 2)
