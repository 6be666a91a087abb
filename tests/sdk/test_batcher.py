"""The batcher: every message is added once, whatever is lost, late, repeated, cancelled or given up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.agent import Agent
from agentstream.errors import AgentStreamError, Backpressure, ConnectionLost, InvalidMessage, Unanswered
from agentstream.protocol.envelope import decode
from agentstream.sending.batcher import Batcher
from agentstream.sent import SentMessage
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream.transport.retry import Backoff
from support.batcher import Detour, batcher_on, record
from support.entries import add_command
from support.servers import Server
from support.topology import Topology, fields_of
from support.waiting import until

TASKS = "{test.tasks}"


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder")
    return topology


@pytest.fixture
async def planner(declared: Topology, proxy: Faults) -> AsyncIterator[Agent]:
    """Sends through the proxy, and knows its route already."""
    async with declared.agent("planner", url=proxy.url) as agent:
        assert await agent._sender._directory.target("coder", None, 0)
        yield agent


async def send(agent: Agent, n: int, timeout: float = 30.0) -> SentMessage:
    return await agent.send_message(to="coder", type="event", payload={"n": n}, timeout=timeout)


async def on_stream(wire: Client) -> list[int]:
    """The numbers of the messages on the stream."""
    entries = await wire.call("XRANGE", TASKS, "-", "+")
    return [decode(fields_of(fields)["m"]).payload["n"] for _, fields in entries]


def doubt(agent: Agent) -> Exception | None:
    (batcher,) = agent._sender._batchers.values()
    return batcher._doubt


async def test_three_lost_replies_leave_one_entry(planner: Agent, proxy: Faults, wire: Client) -> None:
    proxy.lose_reply("as1_add", times=3)
    sent = await send(planner, 1)
    assert proxy.lost == 3
    ((entry, _),) = await wire.call("XRANGE", TASKS, "-", "+")
    assert entry.decode() == sent.entry


async def test_ten_sends_at_once_with_lost_replies_leave_ten(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    proxy.lose_reply("as1_add", times=3)
    sent = await asyncio.gather(*(send(planner, n) for n in range(10)))
    assert proxy.lost == 3
    assert await on_stream(wire) == list(range(10))
    entries = await wire.call("XRANGE", TASKS, "-", "+")
    assert [one.entry for one in sent] == [entry.decode() for entry, _ in entries]


async def test_lost_commands_are_sent_again(planner: Agent, proxy: Faults, wire: Client) -> None:
    proxy.lose_command("as1_add", times=3)
    await asyncio.gather(*(send(planner, n) for n in range(10)))
    assert proxy.lost == 3
    assert await on_stream(wire) == list(range(10))


async def test_a_server_that_is_killed_in_mid_write_loses_and_doubles_nothing(private_server: Server) -> None:
    # with `everysec` the server answers before it writes while the disk is slow, and a kill takes that
    private_server.options += ("--appendfsync", "always")
    private_server.restart()
    private_server.clear()
    wire = Client(lambda: Endpoint(private_server.url), name="test")
    topology = Topology(wire, private_server.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder")
    sent: list[int] = []
    async with topology.agent("planner") as planner:

        async def sender(numbers: range) -> None:
            for n in numbers:
                await send(planner, n)
                sent.append(n)

        senders = [asyncio.create_task(sender(range(first, 4_000, 50))) for first in range(50)]
        for crash in range(1, 4):
            enough = crash * 900
            await until(lambda enough=enough: len(sent) > enough)
            await asyncio.to_thread(private_server.restart)
        await asyncio.gather(*senders)

    async def numbers() -> list[int]:
        try:
            return await on_stream(wire)
        except AgentStreamError:
            return []

    there = await until(numbers)
    await wire.close()
    assert sorted(there) == list(range(4_000))


async def test_an_original_that_comes_after_its_repetition_adds_nothing(
    server: Server, declared: Topology, wire: Client
) -> None:
    async with Detour(server.port, b"as1_add") as detour:
        async with declared.agent("planner", url=detour.url) as planner:
            await send(planner, 1)
            await detour.deliver_late()
            assert await on_stream(wire) == [1]
            detour.hold_next()
            await send(planner, 2)
            await send(planner, 3)
            reply = await detour.deliver_late()
            assert reply.startswith(b"-STALE")
    assert await on_stream(wire) == [1, 2, 3]


async def test_what_was_given_up_adds_nothing_after_what_follows(
    server: Server, declared: Topology, wire: Client
) -> None:
    async with Detour(server.port, b"as1_add") as detour:
        async with declared.agent("planner", url=detour.url) as planner:
            await send(planner, 0)
            await detour.deliver_late()
            detour.hold_next()
            sending = asyncio.create_task(send(planner, 1))
            await until(lambda: doubt(planner))
            sending.cancel()
            await send(planner, 2)
            assert (await detour.deliver_late()).startswith(b"-STALE")
    assert await on_stream(wire) == [0, 2]


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_an_original_that_comes_when_its_sender_is_forgotten_adds_nothing(
    server: Server, declared: Topology, wire: Client, before: int
) -> None:
    async with Detour(server.port, b'"n":99') as detour:
        async with declared.agent("planner", url=detour.url) as planner:
            for n in range(before):
                await send(planner, n)
            await send(planner, 99)
            # as after 80 seconds, or after the clock jumped
            await wire.call("DEL", *await wire.call("KEYS", f"{TASKS}:sent:*"))
            assert (await detour.deliver_late()).startswith(b"-STALE")
            await send(planner, 100)
    assert await on_stream(wire) == [*range(before), 99, 100]


async def test_who_is_forgotten_by_now_introduces_itself_again(
    declared: Topology, wire: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream.sending.batcher._REMEMBERED", 0.0)
    monkeypatch.setattr("agentstream.sending.batcher._GRACE", 0.0)
    calls: list[object] = []

    async def call(*command: Any) -> object:
        calls.append(command[5])
        return await wire.call(*command)

    batcher = batcher_on(call, TASKS)
    for _ in range(2):
        await batcher.put(record(b"x", timeout=0.2))
        until_then = batcher._remembered_until
        await until(lambda then=until_then: asyncio.get_running_loop().time() > then)
    assert calls == [0, 1, 0, 1]
    assert await wire.call("XLEN", TASKS) == 2


async def test_a_lost_introduction_is_made_under_another_name(
    declared: Topology, proxy: Faults, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        assert await planner._sender._directory.target("coder", None, 0)
        proxy.lose_reply("as1_add", times=2)
        await send(planner, 1)
        assert proxy.lost == 2
        assert len(await wire.call("KEYS", f"{TASKS}:sent:*")) == 3
    assert await on_stream(wire) == [1]


async def test_an_introduction_that_is_under_way_at_the_deadline_is_waited_for(
    declared: Topology, wire: Client
) -> None:
    """Its reply may say why the message is refused, as on a server without memory."""

    async def slow(*command: Any) -> object:
        reply = await wire.call(*command)
        await asyncio.sleep(0.2)
        return reply

    assert await batcher_on(slow, TASKS).put(record(b"x", timeout=0.05))
    assert await wire.call("XLEN", TASKS) == 1


async def test_what_was_not_sent_is_told_apart(declared: Topology, proxy: Faults) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        assert await planner._sender._directory.target("coder", None, 0)
        proxy.lose_reply("as1_add", times=1_000)
        with pytest.raises(ConnectionLost, match="the message was not sent"):
            await send(planner, 1, timeout=0.2)


async def test_numbers_decide_what_is_added(declared: Topology, wire: Client) -> None:
    async def add(text: str, number: int, token: str = "t") -> bytes:
        reply: bytes = await wire.call("FCALL", *add_command(TASKS, text, number=number, token=token))
        return reply

    with pytest.raises(AgentStreamError, match="STALE"):
        await add("x", 1)
    assert (await add("first", 0)).startswith(b"0 ")
    first = await add("a", 1)
    assert await add("a", 1) == first
    second = await add("b", 2)
    with pytest.raises(AgentStreamError, match="STALE"):
        await add("a", 1)
    assert await add("b", 2) == second
    assert (await add("c", 4)).startswith(b"4 ")
    with pytest.raises(AgentStreamError, match="STALE"):
        await add("x", 1, token="forgotten")
    entries = await wire.call("XRANGE", TASKS, "-", "+")
    assert [fields_of(fields)["m"] for _, fields in entries] == [b"first", b"a", b"b", b"c"]
    assert 0 < await wire.call("PTTL", f"{TASKS}:sent:t") <= 60_000


async def test_what_the_server_remembers_outlives_every_repetition(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 1, timeout=1_000)
    (key,) = await wire.call("KEYS", f"{TASKS}:sent:*")
    assert await wire.call("PTTL", key) > 1_050_000


@pytest.mark.parametrize("timeout", [math.inf, float(sys.maxsize), 1e300])
async def test_who_waits_for_ever_sends_once_and_holds_up_nobody(
    planner: Agent, wire: Client, timeout: float
) -> None:
    async with asyncio.timeout(5):
        await asyncio.gather(send(planner, 1, timeout), send(planner, 2))
        await send(planner, 3)
    assert await on_stream(wire) == [1, 2, 3]


async def test_a_key_of_ones_own_that_cannot_be_sent_harms_no_other(planner: Agent, wire: Client) -> None:
    odd = planner.send_message(to="coder", type="event", payload={"n": 0}, once="caf\udce9")
    refused, sent = await asyncio.gather(odd, send(planner, 1), return_exceptions=True)
    assert isinstance(refused, InvalidMessage)
    assert isinstance(sent, SentMessage)
    assert await on_stream(wire) == [1]


async def test_a_sender_that_was_forgotten_begins_anew(planner: Agent, wire: Client) -> None:
    for n in range(3):
        await send(planner, n)
        (key,) = await wire.call("KEYS", f"{TASKS}:sent:*")
        await wire.call("DEL", key)
    assert await on_stream(wire) == [0, 1, 2]


async def test_a_server_that_forgot_what_is_in_doubt_is_an_error(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 1)
    await send(planner, 2)
    proxy.lose_reply("as1_add")
    sending = asyncio.create_task(send(planner, 3))
    await until(lambda: proxy.lost == 1)
    with proxy.refuse():
        (key,) = await wire.call("KEYS", f"{TASKS}:sent:*")
        await wire.call("DEL", key)
    with pytest.raises(ConnectionLost, match="not known: STALE"):
        await sending
    await send(planner, 4)
    assert await on_stream(wire) == [1, 2, 3, 4]


async def test_a_caller_that_is_cancelled_before_its_message_left_sends_nothing(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    with proxy.hold():
        first = asyncio.create_task(send(planner, 1))
        await until(lambda: _under_way(planner))
        second, third = asyncio.create_task(send(planner, 2)), asyncio.create_task(send(planner, 3))
        await asyncio.sleep(0)
        second.cancel()
    await asyncio.gather(first, third)
    assert await on_stream(wire) == [0, 1, 3]


async def test_a_caller_that_is_cancelled_later_sends_once(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    proxy.lose_reply("as1_add", times=2)
    sending = [asyncio.create_task(send(planner, n)) for n in (1, 2)]
    await until(lambda: proxy.lost == 1)
    sending[0].cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    assert await on_stream(wire) == [0, 1, 2]


async def test_nobody_waits_for_a_batch_and_it_is_not_repeated(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    proxy.lose_command("as1_add")
    sending = asyncio.create_task(send(planner, 1))
    await until(lambda: doubt(planner))
    sending.cancel()
    await send(planner, 2)
    assert await on_stream(wire) == [0, 2]


async def test_at_the_deadline_a_caller_is_told_that_nobody_knows(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    proxy.lose_reply("as1_add", times=1_000)
    with pytest.raises(ConnectionLost, match="whether the server has the message is not known"):
        await send(planner, 1, timeout=0.2)
    proxy.heal()
    await send(planner, 2)
    assert await on_stream(wire) == [0, 1, 2]


async def test_what_waits_behind_a_batch_in_doubt_has_its_own_deadline(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    fault = proxy.refuse()
    first = asyncio.create_task(send(planner, 1))
    await until(lambda: doubt(planner))
    with pytest.raises(ConnectionLost, match="was not sent"):
        await send(planner, 2, timeout=0.05)
    fault.end()
    await first
    assert await on_stream(wire) == [0, 1]


async def test_an_answer_that_is_under_way_at_the_deadline_is_waited_for(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    await send(planner, 0)
    with proxy.delay(0.3):
        await send(planner, 1, timeout=0.05)
    assert await on_stream(wire) == [0, 1]


async def test_a_connection_that_is_silent_is_an_error_soon_after_the_deadline(
    planner: Agent, proxy: Faults
) -> None:
    await send(planner, 0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with proxy.hold():
        with pytest.raises(Unanswered, match="no reply in time"):
            await send(planner, 1, timeout=0.05)
    assert loop.time() - began < 4


async def test_two_hundred_senders_share_a_slow_connection(
    planner: Agent, proxy: Faults, wire: Client
) -> None:
    with proxy.delay(0.05):
        before = planner._write.round_trips
        await asyncio.gather(*(send(planner, n) for n in range(200)))
        assert planner._write.round_trips - before < 20
    assert await on_stream(wire) == list(range(200))


async def test_batches_are_bounded_and_a_large_message_travels_alone(
    declared: Topology, wire: Client
) -> None:
    sizes: list[int] = []

    async def call(*args: object) -> object:
        sizes.append(sum(isinstance(arg, bytes) for arg in args))
        return await wire.call(*args)  # type: ignore[arg-type]

    batcher = batcher_on(call, TASKS)
    bodies = [b"x"] * 1_000 + [b"x" * 100_000] * 5 + [b"x" * 300_000, b"x"]
    entries = await asyncio.gather(*(batcher.put(record(body)) for body in bodies))
    assert sizes == [0, 64, 500, 438, 2, 1, 1, 1]
    assert len(set(entries)) == len(bodies)


async def test_leaving_the_agent_ends_what_is_being_sent(declared: Topology, proxy: Faults) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        await send(planner, 0)
        proxy.refuse()
        first = asyncio.create_task(send(planner, 1))
        await until(lambda: doubt(planner))
        second = asyncio.create_task(send(planner, 2))
        await asyncio.sleep(0)
    for sending, text in ((first, "not known"), (second, "not sent")):
        with pytest.raises(Unanswered, match=f"{text}: the agent has ended"):
            await sending
    with pytest.raises(ConnectionLost, match="closed"):
        await send(planner, 3)


async def test_a_refusal_while_in_doubt_is_no_answer(planner: Agent, proxy: Faults, wire: Client) -> None:
    await send(planner, 0)
    proxy.lose_reply("as1_add")
    sending = asyncio.create_task(send(planner, 1))
    await until(lambda: proxy.lost == 1)
    await wire.call("CONFIG", "SET", "maxmemory", 1)
    await until(lambda: "OOM" in str(doubt(planner)))
    await wire.call("CONFIG", "SET", "maxmemory", 0)
    await sending
    await wire.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Backpressure):
        await send(planner, 2, timeout=0.1)
    await wire.call("CONFIG", "SET", "maxmemory", 0)
    assert await on_stream(wire) == [0, 1]


async def test_what_cannot_be_sent_at_all_is_an_error_for_its_sender(
    declared: Topology, wire: Client
) -> None:
    batcher = batcher_on(wire.call, TASKS)
    odd = record(b"x")
    odd.options = ("t", object())  # type: ignore[assignment]
    with pytest.raises(TypeError):
        await batcher.put(odd)
    assert await batcher.put(record(b"y"))


def _under_way(agent: Agent) -> bool:
    (batcher,) = agent._sender._batchers.values()
    return bool(batcher._in_flight)


_streams = itertools.count()


class Fate(Enum):
    """What the network does to a command."""

    ANSWERED = auto()
    COMMAND_LOST = auto()
    REPLY_LOST = auto()
    # the server gets it after a later one, though its connection broke
    LATE = auto()
    # the server gets it when it has forgotten its sender
    VERY_LATE = auto()
    # the server refuses it before anything is done
    REFUSED = auto()


@dataclass(frozen=True)
class Burst:
    """Messages that are put at the same moment.

    Attributes:
        count: how many.
        room: how many more the stream takes; None for any number.
        fates: of the commands from now on; answered when there are none left.
        cancelled: which callers go away, and after how many turns of the event loop.
    """

    count: int
    room: int | None
    fates: tuple[Fate, ...]
    cancelled: dict[int, int]


bursts = st.builds(
    Burst,
    count=st.integers(1, 6) | st.just(70),
    room=st.none() | st.integers(0, 4),
    fates=st.lists(st.sampled_from(Fate), max_size=6).map(tuple),
    cancelled=st.dictionaries(st.integers(0, 5), st.integers(0, 12), max_size=3),
)


@dataclass
class Network:
    """Between a batcher and a real server."""

    wire: Client
    fates: list[Fate] = field(default_factory=list)
    late: list[tuple[Any, ...]] = field(default_factory=list)
    very_late: list[tuple[Any, ...]] = field(default_factory=list)

    async def call(self, *command: Any) -> Any:
        fate = self.fates.pop(0) if self.fates else Fate.ANSWERED
        if fate is Fate.REFUSED:
            raise Backpressure("OOM")
        if fate is Fate.LATE:
            self.late.append(command)
        if fate is Fate.VERY_LATE:
            self.very_late.append(command)
        if fate in (Fate.ANSWERED, Fate.REPLY_LOST):
            reply = await self.wire.call(*command)
            await self.deliver_late()
            if fate is Fate.ANSWERED:
                return reply
        raise ConnectionLost(fate.name)

    async def deliver_late(self) -> None:
        while self.late:
            with contextlib.suppress(AgentStreamError):
                await self.wire.call(*self.late.pop())


@given(plan=st.lists(bursts, min_size=1, max_size=6))
async def test_the_stream_holds_what_callers_were_told(
    wire: Client, monkeypatch: pytest.MonkeyPatch, plan: list[Burst]
) -> None:
    monkeypatch.setattr("agentstream.sending.batcher.Backoff", lambda *_: Backoff(0.0, 0.0))
    key = f"{{model.{next(_streams)}}}"
    await wire.call("FCALL", "as1_create_stream", 1, key, f"{key}:meta", "name", "model")
    network = Network(wire)
    batcher = batcher_on(network.call, key)
    told: dict[bytes, str | BaseException] = {}
    bodies = (b"%d" % n for n in itertools.count())
    for burst in plan:
        await set_gate(wire, key, burst.room)
        network.fates = list(burst.fates)
        told |= await put(batcher, [next(bodies) for _ in range(burst.count)], burst.cancelled)
    network.fates = []
    await network.deliver_late()
    await batcher.close()
    await wire.call("DEL", f"{key}:none", *await wire.call("KEYS", f"{key}:sent:*"))
    network.late = network.very_late
    await network.deliver_late()

    entries = [(e.decode(), fields_of(f)["m"]) for e, f in await wire.call("XRANGE", key, "-", "+")]
    times = Counter(body for _, body in entries)
    assert not [body for body, count in times.items() if count > 1]
    answered = {entry: body for body, entry in told.items() if isinstance(entry, str)}
    assert answered.items() <= dict(entries).items()
    in_order = [body for entry, body in entries if entry in answered]
    assert in_order == sorted(in_order, key=int)
    for body, outcome in told.items():
        if isinstance(outcome, Backpressure):
            assert body not in times
        elif not isinstance(outcome, str):
            assert isinstance(outcome, asyncio.CancelledError)


async def set_gate(wire: Client, key: str, room: int | None) -> None:
    if room is None:
        await wire.call("DEL", f"{key}:gate")
    else:
        await wire.call("SET", f"{key}:gate", await wire.call("XLEN", key) + room)


async def put(
    batcher: Batcher, bodies: list[bytes], cancelled: dict[int, int]
) -> dict[bytes, str | BaseException]:
    """What the callers are told."""
    entries = [batcher.put(record(body)) for body in bodies]
    for turn in range(max(cancelled.values(), default=-1) + 1):
        for index, when in cancelled.items():
            if when == turn and index < len(entries):
                entries[index].cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*entries, return_exceptions=True)
    return dict(zip(bodies, results, strict=True))
