"""An agent that a test kills does what SIGKILL leaves of one: it says nothing, and holds what it had."""

from __future__ import annotations

import asyncio

import pytest

from agentstream import Agent, ConnectionLost
from agentstream.testing import Sandbox
from support.topology import following
from support.waiting import until


async def send(sandbox: Sandbox, *payloads: int) -> None:
    planner = sandbox.agent("planner")
    for n in payloads:
        await planner.send_message(to="coder", type="event", payload={"n": n})


async def pending(sandbox: Sandbox) -> list[tuple[str, int, int]]:
    """Who holds what is pending, for how many ms without renewal, and at which count."""
    reply = await sandbox._call("XPENDING", "{test.tasks}", "coder", "-", "+", 100)
    return [(name.decode(), idle, counter) for _, name, idle, counter in reply]


async def connections(sandbox: Sandbox) -> list[bytes]:
    return [line for line in (await sandbox._call("CLIENT", "LIST")).splitlines() if b"test.coder" in line]


def steps(agent: Agent, done: list[str], go_on: asyncio.Event) -> asyncio.Task[None]:
    """A handler of two steps that waits in the middle."""

    async def work() -> None:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                done.append("first")
                await go_on.wait()
                done.append("second")

    return asyncio.create_task(work())


async def test_a_handler_ends_where_it_is_and_nothing_is_handed_back(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=60)
    await send(sandbox, 1, 2, 3)
    done: list[str] = []
    killed = sandbox.agent("coder", pod="coder-x")
    working = steps(killed, done, asyncio.Event())
    await until(lambda: done)
    before = await pending(sandbox)
    await sandbox.kill(killed)
    await asyncio.wait({working}, timeout=0)
    assert working.cancelled()
    assert done == ["first"]
    after = await pending(sandbox)
    assert [(name, counter) for name, _, counter in after] == [(name, counter) for name, _, counter in before]
    assert len(after) == 3
    assert all(idle < 60_000 for _, idle, _ in after)
    await until(lambda: _none(connections(sandbox)))
    async with sandbox.agent("coder", pod="coder-x").stream_consume("tasks") as deliveries:
        again = [await following(deliveries) for _ in range(3)]
        assert [delivery.attempt for delivery in again] == [2, 2, 2]
        for delivery in again:
            await delivery.ack()
    await sandbox.settled("tasks")


async def _none(found) -> bool:
    return not await found


async def test_leases_are_not_renewed_any_more(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=0.3)
    await send(sandbox, 1)
    killed = sandbox.agent("coder")
    held = await following(killed.stream_consume("tasks"))
    await sandbox.kill(killed)
    again = await following(sandbox.agent("coder").stream_consume("tasks"))
    assert (again.message.id, again.attempt) == (held.message.id, 2)
    assert await again.ack()


async def test_handlers_that_an_agent_runs_end_where_they_are(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    begun, done = asyncio.Event(), asyncio.Event()

    @coder.on("event", stream="tasks")
    async def handle(payload: dict[str, int]) -> None:
        begun.set()
        await asyncio.Event().wait()
        done.set()

    running = asyncio.create_task(coder.run())
    await begun.wait()
    await sandbox.kill(coder)
    await asyncio.wait({running}, timeout=1)
    assert running.done()
    assert not done.is_set()
    assert [counter for *_, counter in await pending(sandbox)] == [1]


async def test_who_waits_for_a_message_is_cancelled(sandbox: Sandbox) -> None:
    coder = sandbox.agent("coder")
    waiting = asyncio.create_task(anext(coder.stream_consume("tasks")))
    await until(lambda: connections(sandbox))
    await sandbox.kill(coder)
    await asyncio.wait({waiting}, timeout=0)
    assert waiting.cancelled()


@pytest.mark.parametrize("fault", ["refuse", "hold"])
async def test_it_dies_at_once_also_without_a_server(sandbox: Sandbox, fault: str) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    held = await following(coder.stream_consume("tasks"))
    getattr(sandbox.faults, fault)()
    acknowledging = asyncio.create_task(held.ack())
    await asyncio.wait({acknowledging}, timeout=0.1)
    assert not acknowledging.done()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await sandbox.kill(coder)
    assert not await acknowledging
    assert loop.time() - started < 1


async def test_the_dead_say_nothing(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    held = await following(coder.stream_consume("tasks"))
    await sandbox.kill(coder)
    assert not await held.ack()
    with pytest.raises(ConnectionLost):
        await coder.send_message(to="coder", type="event", payload={})
    with pytest.raises(StopAsyncIteration):
        await anext(coder.stream_consume("tasks"))
    await sandbox.kill(coder)
    assert [counter for *_, counter in await pending(sandbox)] == [1]


async def test_a_handler_may_kill_its_own_agent(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    async for delivery in coder.stream_consume("tasks"):
        async with delivery:
            await sandbox.kill(coder)
    assert [counter for *_, counter in await pending(sandbox)] == [1]
