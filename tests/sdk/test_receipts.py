"""Receipts of broadcasts: who has acknowledged, who has not, and who will not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentstream import QuorumMissed, Receipt, ReceiptState
from agentstream.agent import Agent
from agentstream.errors import ConnectionLost, NoRoute, ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream.testing.faults import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, following, numbers
from support.waiting import until

NEWS = StreamKeys("{test.news}")
GROUPS = ("coder", "tester", "writer")


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to the broadcast stream `news`, which three groups read, and to `tasks`."""
    await topology.stream("news", "planner", broadcast=True)
    for group in GROUPS:
        await topology.group("news", group, broadcast=True, max_deliveries=2)
    return topology


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


async def acknowledge(declared: Topology, *groups: str) -> None:
    """These groups handle one message each."""
    for group in groups:
        async with declared.agent(group) as agent, agent.stream_consume("news") as deliveries:
            assert await (await following(deliveries)).ack()


async def standings(receipt: Receipt) -> dict[str, str]:
    return {group: str(standing) for group, standing in (await receipt.status()).groups.items()}


async def test_a_receipt_says_what_was_sent_and_who_is_expected(planner: Agent, wire: Client) -> None:
    receipt = await planner.broadcast(type="event", payload={"n": 1})
    assert receipt.expected == GROUPS
    assert (receipt.sent.stream, await wire.call("XLEN", NEWS.stream)) == ("news", 1)
    assert receipt.sent.id in repr(receipt)
    assert await standings(receipt) == dict.fromkeys(GROUPS, "pending")


async def test_the_receipt_of_an_event_that_was_shed_expects_no_groups(planner: Agent, wire: Client) -> None:
    await wire.call("SET", NEWS.gate, 0)
    receipt = await planner.broadcast(type="event", payload={}, on_full="shed")
    assert (receipt.sent.shed, receipt.expected, await wire.call("XLEN", NEWS.stream)) == (True, (), 0)
    assert (await receipt.wait(timeout=0)).groups == {}


async def test_all_groups_acknowledge(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    waiting = asyncio.create_task(receipt.wait())
    await acknowledge(declared, "writer", "coder")
    assert await standings(receipt) == {
        "coder": "acknowledged",
        "tester": "pending",
        "writer": "acknowledged",
    }
    assert not waiting.done()
    await acknowledge(declared, "tester")
    status = await waiting
    assert (status.acknowledged, status.outstanding, status.dead) == (GROUPS, (), ())


async def test_who_has_it_in_hand_has_not_acknowledged_it(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        delivery = await following(deliveries)
        assert (await receipt.status()).groups["coder"] is ReceiptState.PENDING
        await delivery.ack()
        assert (await receipt.status()).groups["coder"] is ReceiptState.ACKNOWLEDGED


async def test_what_came_later_does_not_count(declared: Topology, planner: Agent) -> None:
    await acknowledge_of_two(declared, planner, first=True)
    await acknowledge_of_two(declared, planner, first=False)


async def acknowledge_of_two(declared: Topology, planner: Agent, *, first: bool) -> None:
    """Of two broadcasts, `coder` acknowledges one while it has the other in hand."""
    receipts = [await planner.broadcast(type="event", payload={"n": n}) for n in range(2)]
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        both = [await following(deliveries) for _ in receipts]
        await both[0 if first else 1].ack()
        seen = [(await receipt.status()).groups["coder"] for receipt in receipts]
        assert seen == ([ReceiptState.ACKNOWLEDGED, ReceiptState.PENDING][:: 1 if first else -1])
        await both[1 if first else 0].ack()


@pytest.mark.parametrize("quorum", [2, 0.5, 0.6])
async def test_a_quorum_is_a_number_or_a_share(declared: Topology, planner: Agent, quorum: float) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    await acknowledge(declared, "coder")
    with pytest.raises(QuorumMissed, match="1 of the 2 groups"):
        await receipt.wait(quorum, timeout=0.05)
    await acknowledge(declared, "tester")
    assert (await receipt.wait(quorum)).outstanding == ("writer",)


async def test_a_missed_quorum_says_who_is_missing(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    await acknowledge(declared, "coder")
    with pytest.raises(QuorumMissed, match="tester pending, writer pending") as missed:
        await receipt.wait(timeout=0.05)
    error = missed.value
    assert (error.acknowledged, error.outstanding, error.dead) == (("coder",), ("tester", "writer"), ())


async def test_who_tries_again_has_not_acknowledged_yet(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        await (await following(deliveries)).retry(after=0.05)
        status = await receipt.status()
        assert status.groups["coder"] is ReceiptState.RETRYING
        assert "coder" in status.outstanding
        again = await following(deliveries)
        assert (await receipt.status()).groups["coder"] is ReceiptState.RETRYING
        await again.ack()
        assert (await receipt.status()).groups["coder"] is ReceiptState.ACKNOWLEDGED


async def test_who_gave_it_up_makes_waiting_for_all_pointless(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    waiting = asyncio.create_task(receipt.wait(timeout=60))
    two = asyncio.create_task(receipt.wait(2, timeout=60))
    async with declared.agent("coder") as coder, coder.stream_consume("news") as deliveries:
        await (await following(deliveries)).dead_letter("no")
    with pytest.raises(QuorumMissed, match="coder dead") as missed:
        await asyncio.wait_for(waiting, 10)
    assert missed.value.dead == ("coder",)
    assert not two.done()
    await acknowledge(declared, "tester", "writer")
    assert (await two).dead == ("coder",)


async def test_who_failed_too_often_has_given_it_up(declared: Topology, planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    async with declared.agent("tester") as tester, tester.stream_consume("news") as deliveries:
        for _ in range(2):
            async with await following(deliveries):
                raise RuntimeError("fails")
        await until(lambda: is_dead(receipt, "tester"))


async def is_dead(receipt: Receipt, group: str) -> bool:
    return (await receipt.status()).groups[group] is ReceiptState.DEAD


async def test_a_group_that_is_gone_is_missing(declared: Topology, planner: Agent, wire: Client) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    await acknowledge(declared, "coder", "tester")
    await wire.call("FCALL", "as1_destroy_group", 1, NEWS.stream, NEWS.base, "writer")
    status = await receipt.status()
    assert status.groups["writer"] is ReceiptState.MISSING
    # it may be made again where it stopped
    assert status.outstanding == ("writer",)
    assert (await receipt.wait(2)).acknowledged == ("coder", "tester")
    with pytest.raises(QuorumMissed, match="writer missing"):
        await receipt.wait(timeout=0.05)


async def test_without_a_stream_all_groups_are_missing(planner: Agent, wire: Client) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    await wire.call("DEL", NEWS.stream)
    assert await standings(receipt) == dict.fromkeys(GROUPS, "missing")
    await wire.call("SET", NEWS.stream, "no stream")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await receipt.status()
    await wire.call("DEL", NEWS.stream)


async def test_without_groups_there_is_nothing_to_wait_for(server: Server, wire: Client) -> None:
    topology = Topology(wire, server.url)
    await topology.stream("news", "planner", broadcast=True)
    async with topology.agent("planner") as planner:
        receipt = await planner.broadcast(type="event", payload={})
        assert receipt.expected == ()
        assert (await receipt.wait()).groups == {}
        assert (await receipt.wait(0.9)).groups == {}
        with pytest.raises(QuorumMissed, match="no more are declared"):
            await receipt.wait(1, timeout=60)


async def test_more_groups_than_there_are_cannot_acknowledge(planner: Agent) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    with pytest.raises(QuorumMissed):
        await receipt.wait(4, timeout=60)


@pytest.mark.parametrize("quorum", [0, -1, 0.0, 1.0, 1.5, True])
async def test_what_is_no_quorum_is_refused(planner: Agent, quorum: float) -> None:
    receipt = await planner.broadcast(type="event", payload={})
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        await receipt.wait(quorum)


async def test_a_group_that_is_declared_later_is_expected_from_then_on(
    declared: Topology, planner: Agent, wire: Client
) -> None:
    before = await planner.broadcast(type="event", payload={})
    await declared.group("news", "archive", broadcast=True)

    async def is_expected() -> bool:
        receipt = await planner.broadcast(type="event", payload={})
        return receipt.expected == ("archive", *GROUPS)

    # no route is older than a second
    await until(is_expected, timeout=5)
    assert before.expected == GROUPS


async def test_only_broadcast_streams_give_receipts(planner: Agent, wire: Client) -> None:
    with pytest.raises(NoRoute, match="tasks is no broadcast stream"):
        await planner.broadcast(type="event", payload={}, stream="tasks")
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_a_server_that_is_away_delays_a_broadcast_and_a_receipt(
    declared: Topology, proxy: Faults, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        with proxy.refuse():
            sending = asyncio.create_task(planner.broadcast(type="event", payload={}))
            await asyncio.wait({sending}, timeout=0.1)
            assert not sending.done()
        receipt = await sending
        assert await wire.call("XLEN", NEWS.stream) == 1
        with proxy.refuse():
            waiting = asyncio.create_task(receipt.wait(timeout=60))
            with pytest.raises(ConnectionLost):
                await receipt.wait(timeout=0.05)
            with pytest.raises(ConnectionLost):
                await receipt.status()
        await acknowledge(declared, *GROUPS)
        assert (await waiting).acknowledged == GROUPS


async def test_a_server_that_stays_away_is_an_error_at_the_deadline(declared: Topology) -> None:
    async with declared.agent("planner", url="redis://127.0.0.1:1") as planner:
        with pytest.raises(ConnectionLost):
            await planner.broadcast(type="event", payload={}, timeout=0.2)


async def test_a_receipt_of_a_closed_agent_is_of_no_use(declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        receipt = await planner.broadcast(type="event", payload={})
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionLost, match="closed"):
            await receipt.wait(timeout=60)


async def test_without_a_broadcast_stream_there_is_no_route(declared: Topology) -> None:
    async with declared.agent("coder") as coder:
        with pytest.raises(NoRoute):
            await coder.broadcast(type="event", payload={}, timeout=0.1)


async def test_a_thousand_broadcasts_are_acknowledged(declared: Topology, planner: Agent) -> None:
    count = 1_000
    receipts = await asyncio.gather(
        *(planner.broadcast(type="event", payload={"n": n}) for n in range(count))
    )

    async def consume(group: str) -> None:
        async with declared.agent(group) as agent, agent.stream_consume("news") as deliveries:
            assert sorted(await numbers(deliveries, count)) == list(range(count))

    _, *statuses = await asyncio.gather(
        asyncio.gather(*(consume(group) for group in GROUPS)), *(receipt.wait() for receipt in receipts)
    )
    assert all(status.acknowledged == GROUPS for status in statuses)
