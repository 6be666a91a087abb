"""What an agent sees of a replay: its own messages once more, in order, and nothing that was not for it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.errors import Retry
from agentstream.protocol.commands import PAGE
from agentstream.protocol.entry import position
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.replaying import (
    FIRST,
    LAST,
    page,
    parse_page,
)
from agentstream.transport.client import Client
from support.replays import replay_all
from support.servers import Server
from support.signed import OLD, Signed
from support.topology import Topology, body_of, following, numbers, send
from support.tracing import exporter
from support.waiting import until

KEYS = StreamKeys("{test.tasks}")


async def test_a_replayed_message_says_so_and_begins_anew(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 7)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as first:
            assert first.replay is None
            assert "of replay" not in repr(first)
        await until(lambda: topology.settled(group, 1))
        seen: list[Delivery] = []
        for name in ("again", "once-more"):
            assert await replay_all(wire, group, name) == 1
            async with await following(deliveries) as delivery:
                seen.append(delivery)
                assert (delivery.replay, delivery.attempt, delivery.entry) == (name, 1, first.entry)
                assert delivery.message == first.message
                assert f"attempt 1 of replay {name}" in repr(delivery)
    assert first.fence < seen[0].fence < seen[1].fence


async def test_it_says_so_until_it_is_settled_whoever_has_it(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 7)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries):
            pass
        await until(lambda: topology.settled(group, 1))
        await replay_all(wire, group)
        said, fences = [], []
        for verb in ("retry", "later", "release", "ack"):
            delivery = await following(deliveries)
            said.append((delivery.replay, delivery.attempt))
            fences.append(delivery.fence)
            if verb == "retry":
                assert await delivery.retry(after=0)
            elif verb == "later":
                assert await delivery.retry(after=0.01)
            else:
                assert await getattr(delivery, verb)()
    assert said == [("again", 1), ("again", 2), ("again", 3), ("again", 3)]
    assert fences == sorted(set(fences))


async def test_what_a_process_left_that_was_killed_is_of_the_replay_still(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, 7)
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [7]
    await until(lambda: topology.settled(group, 1))
    await replay_all(wire, group)
    await wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "STREAMS", KEYS.retry("coder"), ">")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            assert (delivery.replay, delivery.attempt) == ("again", 2)


async def test_an_effect_that_once_guards_is_not_repeated(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 7)
    charged: list[bool] = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for handled in range(2):
            async with await following(deliveries) as delivery, delivery.once("charge-7") as first:
                charged.append(first)
            if not handled:
                await until(lambda: topology.settled(group, 1))
                await replay_all(wire, group)
    assert charged == [True, False]


async def test_dead_letters_are_handled_after_the_bug_is_mended(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", max_deliveries=2)
    await send(topology, *range(5))
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for _ in range(10):
            async with await following(deliveries):
                raise ValueError
        await until(lambda: topology.settled(group, 5))
        assert len(await topology.dead_letters(group)) == 5
        assert await replay_all(wire, group, source="dead") == 5
        assert sorted(await numbers(deliveries, 5)) == list(range(5))
        await until(lambda: topology.settled(group, 5))
    assert await topology.dead_letters(group) == []
    stats = await topology.stats(group)
    assert (stats["replayed"], stats["acked"], stats["dead"]) == (5, 5, 5)


class InTurn:
    """What handlers of several consumers did with messages, by ordering key; every fifth fails at first."""

    def __init__(self, total: int) -> None:
        self.done: dict[str, list[int]] = defaultdict(list)
        self.tokens: dict[str, list[tuple[tuple[int, int], int]]] = defaultdict(list)
        self.overlaps: list[str] = []
        self._total = total
        self._running: set[str] = set()

    async def consume(self, agent: Agent, everybody: Sequence[Agent]) -> None:
        deliveries = agent.stream_consume("tasks", concurrency=8)

        async def work() -> None:
            async for delivery in deliveries:
                async with delivery:
                    await self.handle(delivery)
                if sum(map(len, self.done.values())) == self._total:
                    for each in everybody:
                        each.stop()

        await asyncio.gather(*(work() for _ in range(8)))

    async def handle(self, delivery: Delivery) -> None:
        key, n = delivery.message.key or "", delivery.message.payload["n"]
        if key in self._running:
            self.overlaps.append(key)
        self._running.add(key)
        self.tokens[key].append((position(delivery.entry), delivery.fence))
        try:
            await asyncio.sleep(0.001)
            if n % 5 == 0 and delivery.attempt == 1:
                raise Retry("again", after=0.02)
            self.done[key].append(n)
        finally:
            self._running.discard(key)


@pytest.mark.parametrize("source", ["stream", "dead"])
async def test_replayed_messages_of_a_key_keep_their_order_across_consumers(
    topology: Topology, wire: Client, source: Literal["stream", "dead"]
) -> None:
    group, keys = await topology.group("tasks", "coder", max_deliveries=20), [f"key-{n}" for n in range(8)]
    total = 30 * len(keys)
    async with topology.agent("planner") as planner:
        for n, key in product(range(30), keys):
            await planner.send_message(to="coder", stream="tasks", type="event", payload={"n": n}, key=key)
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks", concurrency=16):
            assert await (delivery.ack() if source == "stream" else delivery.dead_letter("Bug"))
            total -= 1
            if not total:
                break
    await until(lambda: topology.settled(group, 30 * len(keys)))

    # every third one is not selected: its key's order holds without it
    where = KEYS.stream if source == "stream" else KEYS.dead_letters("coder")
    listed = parse_page(await wire.call(*page(where, FIRST, LAST, PAGE))).entries
    only = {entry.id for entry in listed if msgspec.json.decode(entry.fields[1])["payload"]["n"] % 3 != 1}
    assert await replay_all(wire, group, source=source, only=only) == len(only)
    record = InTurn(len(only))
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        agents = [await stack.enter_async_context(topology.agent("coder", pod=f"pod-{n}")) for n in range(2)]
        await asyncio.gather(*(record.consume(agent, agents) for agent in agents))
    assert record.overlaps == []
    assert record.done == {key: [n for n in range(30) if n % 3 != 1] for key in keys}
    for tokens in record.tokens.values():
        assert tokens == sorted(set(tokens))
    await until(lambda: topology.settled(group, 30 * len(keys)))
    assert set(await wire.call("HVALS", KEYS.parked("coder"))) <= {b"dead"}


async def test_new_messages_of_a_key_do_not_wait_for_a_replay(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", stream="tasks", type="event", payload={"n": 1}, key="k")
        async with topology.agent("coder") as coder:
            assert await numbers(coder.stream_consume("tasks"), 1) == [1]
        await until(lambda: topology.settled(group, 1))
        await replay_all(wire, group)
        # it is in the hands of somebody who takes its time
        await wire.call("XREADGROUP", "GROUP", "coder", "slow.1", "STREAMS", KEYS.retry("coder"), ">")
        await planner.send_message(to="coder", stream="tasks", type="event", payload={"n": 2}, key="k")
        async with topology.agent("coder") as coder:
            assert await numbers(coder.stream_consume("tasks"), 1) == [2]


async def test_what_is_for_other_agents_stays_theirs_whatever_the_header_says(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    await topology.group("tasks", "tester")
    async with topology.agent("planner") as planner:
        await planner.send_message(to="tester", stream="tasks", type="event", payload={"n": 1})
        await planner.send_message(to="coder", stream="tasks", type="event", payload={"n": 2})
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [2]
        await until(lambda: topology.settled(group, 2))
        # an operator that selects what is for others does not decide about that
        assert await replay_all(wire, group) == 2
        assert await numbers(coder.stream_consume("tasks"), 1) == [2]
        await until(lambda: topology.settled(group, 2))
    assert (await topology.stats(group))["skipped"] == 2


async def test_what_has_expired_is_delivered_if_whoever_replays_it_wants_that(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 7)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            body = body_of(delivery.message, expires_at=time.time() - 60)
        await topology.add_raw(group.key, body)
        await until(lambda: topology.settled(group, 2))
        (letter,) = await topology.dead_letters(group)
        assert letter["reason"] == b"Expired"
        assert await replay_all(wire, group, source="dead") == 1
        async with await following(deliveries) as delivery:
            assert delivery.message.expires_at is not None
            assert delivery.replay == "again"


async def test_a_replayed_message_of_a_signed_stream_is_no_copy(
    server: Server, wire: Client, tmp_path: Path
) -> None:
    topology = Topology(wire, server.url)
    signed = await Signed(topology, tmp_path).declare("Require")
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    await signed.send(0, 1, 2)
    for _ in range(2):
        # a process that starts now remembers nothing
        async with signed.agent("coder") as coder:
            assert sorted(await numbers(coder.stream_consume("tasks"), 3)) == [0, 1, 2]
            await until(lambda: topology.settled(signed.group, 3))
        assert await replay_all(wire, signed.group) == 3
    async with signed.agent("coder") as coder:
        assert sorted(await numbers(coder.stream_consume("tasks"), 3)) == [0, 1, 2]
    assert await topology.dead_letters(signed.group) == []


async def test_spans_name_the_replay(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 7)
    async with topology.agent("coder") as coder:
        await numbers(coder.stream_consume("tasks"), 1)
        await until(lambda: topology.settled(group, 1))
        await replay_all(wire, group)
        exporter().clear()
        await numbers(coder.stream_consume("tasks"), 1)
        (span,) = [one for one in exporter().get_finished_spans() if one.name == "process tasks"]
    assert span.attributes is not None
    assert span.attributes["agentstream.replay"] == "again"


async def test_order_holds_when_a_consumer_of_a_replay_is_cut_off(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    async with topology.agent("planner") as planner:
        for n in range(6):
            await planner.send_message(to="coder", stream="tasks", type="event", payload={"n": n}, key="k")
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 6) == list(range(6))
    await until(lambda: topology.settled(group, 6))
    await replay_all(wire, group)
    # the first one is with a process that was killed
    await wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "COUNT", 1, "STREAMS", KEYS.retry("coder"), ">")
    async with topology.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks", concurrency=4), 6) == list(range(6))
