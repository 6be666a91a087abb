"""Leases: what is held is let go when they cannot be renewed, and nobody is taken for dead too early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest

from agentstream.consuming.hold import Hold
from agentstream.protocol.commands import Command, GroupCalls
from agentstream.protocol.entry import Source
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults, block_loop
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, following, send, started_for_nobody
from support.waiting import until


async def test_what_could_not_be_renewed_does_not_start_before_it_is_known_to_be_held(
    proxy: Faults, topology: Topology
) -> None:
    group = await topology.group("tasks", "coder", lease=400)
    await send(topology, 1, 2)
    async with topology.agent("coder", url=proxy.url) as coder:
        async with coder.stream_consume("tasks") as deliveries:
            first = await following(deliveries)
            leases = deliveries._consumption._dispatcher.leases
            proxy.refuse()
            loop = asyncio.get_running_loop()
            await until(lambda: max(entry.lease_until for entry in leases.held()) < loop.time())
            asking = asyncio.create_task(following(deliveries))
            await until(lambda: len(leases) == 1)
            assert not asking.done()
            proxy.accept()
            second = await asking
            assert (second.message.payload, second.attempt) == ({"n": 2}, 2)
            assert await first.ack()
            assert await second.ack()
    assert await topology.settled(group, 2)


@pytest.mark.parametrize("claimed", [True, False])
async def test_what_is_over_its_lease_once_it_is_begun_is_handed_to_nobody(
    server: Server, topology: Topology, wire: Client, monkeypatch: pytest.MonkeyPatch, *, claimed: bool
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    await wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "COUNT", 1, "STREAMS", group.key, ">")
    loop, asked_to_begin, blocked = asyncio.get_running_loop(), GroupCalls.begin, []

    def block() -> None:
        with server.admin() as admin:
            (pending,) = admin.xpending_range(group.key, "coder", "-", "+", 1)
            block_loop(0.4)
            if claimed:
                admin.xclaim(group.key, "coder", "other.1", 300, [pending["message_id"]], justid=True)
        blocked.append(pending["times_delivered"])

    def begin(self: GroupCalls, source: Source, entries: Sequence[Hold]) -> Command:
        monkeypatch.undo()
        # in the round of the loop after the one in which the command leaves
        loop.call_soon(loop.call_soon, block)
        return asked_to_begin(self, source, entries)

    monkeypatch.setattr(GroupCalls, "begin", begin)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: blocked)
        if claimed:
            await send(topology, 2)
        delivery = await asking
        assert delivery.payload == {"n": 2 if claimed else 1}
        # the attempt that nobody saw does not count
        assert delivery.attempt <= 2
    # it had left, and was carried out
    assert blocked == [2]


async def test_what_comes_back_at_another_count_is_held_anew(
    proxy: Faults, topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000, max_deliveries=9)
    await send(topology, 1, 2)
    async with topology.agent("coder", url=proxy.url) as coder:
        async with coder.stream_consume("tasks") as deliveries:
            first = await following(deliveries)
            second, _ = (await topology.pending(group))[1][:2]
            # as if another consumer had begun and released it meanwhile
            name = coder._consumer.identity.name
            await wire.call("XCLAIM", group.key, "coder", name, 0, second, "JUSTID", "RETRYCOUNT", 4)
            proxy.cut()
            await until(lambda: coder._control.connects > 1)
            await first.ack()
            again = await following(deliveries)
            assert (again.entry, again.attempt) == (second, 5)
            assert await again.ack()


async def test_a_handler_is_told_when_the_group_goes_while_nothing_is_read(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
        delivery = await following(deliveries)
        await wire.call("XGROUP", "DESTROY", group.key, "coder")
        await until(lambda: not delivery.held)


async def test_a_delivery_that_was_lost_before_it_was_fetched_is_passed_over(
    topology: Topology, wire: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(anext(deliveries))
        started_for_nobody(monkeypatch, asking)
        await asyncio.wait({asking})
        dispatch = deliveries._consumption._dispatcher
        (pending,) = await topology.pending(group)
        await wire.call("XCLAIM", group.key, "coder", "other.1", 0, pending[0], "JUSTID")
        await until(lambda: not len(dispatch.leases))
        await send(topology, 2)
        assert (await following(deliveries)).message.payload == {"n": 2}


async def test_a_mistake_behind_the_iterator_ends_it_and_comes_to_light(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topology.group("tasks", "coder")
    monkeypatch.setattr("agentstream.consuming.fetch.Fetcher._recover_own", lambda _: 1 / 0)
    async with topology.agent("coder") as coder:
        with pytest.raises(ExceptionGroup) as caught:
            await following(coder.stream_consume("tasks"))
    assert caught.group_contains(ZeroDivisionError)


async def test_a_route_that_leads_elsewhere_does_not_change_what_is_consumed(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.routing.directory._GOOD_FOR", 0.01)
    group = await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await (await following(deliveries)).ack()
        await topology.forget_route("coder")
        await topology.stream("other")
        other = await topology.group("other", "coder")
        topology.routes["coder"] = type(topology.routes["coder"])(
            consumes=(type(other)(**{**_fields(other), "stream": "tasks", "max_deliveries": 1}),)
        )
        await topology.write_routes()
        sweeps = coder._control
        await until(lambda: sweeps.connects)
        await topology.add_raw(group.key, b"{")
        await until(lambda: topology.dead_letters(group))
        assert deliveries._consumption._dispatcher.policy == group


def _fields(struct) -> dict[str, object]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


async def take_away(topology: Topology, wire: Client, group: Consumes, *entries: str) -> None:
    """As if another consumer had claimed these, or all."""
    taken = entries or [entry for entry, *_ in await topology.pending(group)]
    await wire.call("XCLAIM", group.key, "coder", "other.1", 0, *taken, "JUSTID")


async def test_a_lost_lease_cancels_the_handler_and_the_loop_goes_on(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", lease=900)
    await send(topology, 1)
    seen = []
    async with topology.agent("coder") as coder:
        async for delivery in coder.stream_consume("tasks"):
            async with delivery:
                seen.append(delivery.message.payload["n"])
                if len(seen) == 1:
                    await take_away(topology, wire, group)
                    await send(topology, 2)
                    await asyncio.Event().wait()
            if len(seen) == 2:
                break
            assert not delivery.held
            assert not await delivery.ack()
            assert not await delivery.retry()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert seen == [1, 2]
    assert caplog.text.count("lost the lease of entry") == 1
    assert [name for _, name, *_ in await topology.pending(group)] == ["other.1"]


async def test_several_deliveries_of_one_task_are_lost_together_or_one_by_one(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=900)
    await send(topology, *range(6))
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        ended = []
        for lost in ((0, 1), (0,), (1,)):
            outer, inner = await following(deliveries), await following(deliveries)
            async with outer:
                async with inner:
                    await take_away(topology, wire, group, *((outer, inner)[n].entry for n in lost))
                    await asyncio.Event().wait()
                ended.append("outer")
            ended.append("after")
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
        # what was taken away from the outer block ends the inner one, which is not handled: it is handed back
        assert ended == ["after", "after", "outer", "after"]
        again = await following(deliveries)
        assert (again.attempt, again.fence) == (1, 2)
        assert await again.ack()


async def test_who_cancels_the_handler_at_the_same_time_wins(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        began = asyncio.Event()

        async def work() -> None:
            async with delivery:
                began.set()
                await asyncio.Event().wait()

        working = asyncio.create_task(work())
        await began.wait()
        await take_away(topology, wire, group)
        deliveries._consumption._dispatcher.leases.expire([(delivery._attempt.hold, 1)])
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert not delivery.held


async def test_a_handler_of_what_is_lost_already_is_cancelled_at_its_first_await(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1, 2)
    ran = []
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        both = [await following(deliveries), await following(deliveries)]
        await take_away(topology, wire, group)
        await until(lambda: not any(delivery.held for delivery in both))
        async with both[0]:
            ran.append("first")
            await asyncio.sleep(0)
            ran.append("not this")
        async with both[1]:
            ran.append("second")
        # a block without an await is not cancelled, and neither is what comes after it
        await asyncio.sleep(0)
    assert ran == ["first", "second"]


async def test_an_error_of_a_handler_that_is_cancelled_is_no_other_attempt(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries):
            await take_away(topology, wire, group)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("in mid-work") from None
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert "which another consumer may have by now: ValueError: in mid-work" in caplog.text
    assert (await topology.stats(group)).get("retried", 0) == 0


@pytest.fixture
def proxies(server: Server) -> Iterator[tuple[Faults, Faults]]:
    """Two ways to the server."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(Faults(server.port)), stack.enter_context(Faults(server.port))


async def test_who_comes_back_first_leaves_the_others_what_they_hold(
    topology: Topology, proxies: tuple[Faults, Faults]
) -> None:
    group = await topology.group("tasks", "coder", lease=2_000)
    to_first, to_second = proxies

    async def sweep_due() -> int:
        return (await topology.stats(group)).get("sweep:due", 0)

    async def idle() -> int:
        ((_, _, idle, _),) = await topology.pending(group)
        return idle

    async def has_stalled() -> bool:
        return await idle() > group.lease

    async def is_renewed() -> bool:
        return await idle() < group.lease / 2

    async def has_looked() -> bool:
        return await sweep_due() > due

    async with (
        topology.agent("planner") as planner,
        topology.agent("coder", "coder-1", to_first.url) as first,
        topology.agent("coder", "coder-2", to_second.url) as second,
        first.stream_consume("tasks", concurrency=1) as by_first,
        second.stream_consume("tasks", concurrency=1) as by_second,
    ):
        await planner.send_message(to="coder", type="event", payload={"n": 1})
        held = await following(by_first)
        other = asyncio.create_task(following(by_second))
        await until(lambda: second._consumer.consumed)
        with to_first.refuse():
            with to_second.refuse():
                await until(has_stalled)
                due = await sweep_due()
            await until(has_looked)
        await until(is_renewed)
        await planner.send_message(to="coder", type="event", payload={"n": 2})
        delivery = await other
        assert (delivery.payload, delivery.attempt) == ({"n": 2}, 1)
        assert await held.ack()
        assert await delivery.ack()
    assert await topology.settled(group, 2)


async def test_who_starts_as_the_server_is_back_takes_nothing_from_who_lives(
    topology: Topology, proxy: Faults
) -> None:
    group = await topology.group("tasks", "coder", lease=2_000)
    await send(topology, *range(10))

    async def have_stalled() -> bool:
        return all(idle > 1.2 * group.lease for _, _, idle, _ in await topology.pending(group))

    async def sweep_due() -> int:
        return (await topology.stats(group)).get("sweep:due", 0)

    async def has_looked() -> bool:
        return await sweep_due() > due

    async with (
        topology.agent("coder", "coder-1", proxy.url) as first,
        topology.agent("coder", "coder-2") as newcomer,
        first.stream_consume("tasks", concurrency=10) as by_first,
        newcomer.stream_consume("tasks", concurrency=20) as by_newcomer,
    ):
        held = [await following(by_first) for _ in range(10)]
        with proxy.refuse():
            await until(have_stalled)
            due = await sweep_due()
            other = asyncio.create_task(following(by_newcomer))
            await until(has_looked)
        assert await asyncio.gather(*(delivery.ack() for delivery in held)) == [True] * 10
        await send(topology, 10)
        assert (await other).payload == {"n": 10}
        assert await (await other).ack()
    assert await topology.settled(group, 11)
