"""Messages found with what became of them in each group, in every state that a server can have them in."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys, replay_id
from agentstream.protocol.replaying import ReplayOf, Selected, parse_moved, replay
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.whereabouts import find_fate
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.queue_api.consumers import LISTED, ConsumersReader
from agentstream_operator.queue_api.conversations import ConversationReader
from agentstream_operator.queue_api.documents import ConversationAnswer, StateInGroup
from agentstream_operator.queue_api.finder import MessageFinder
from agentstream_operator.queue_api.problems import Refusal
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.entries import Pending, envelope
from support.resources import KEY, a_group, a_stream

STREAM = a_stream()
KEYS = StreamKeys(KEY)
CONSUMER = "coder-0.abc-1-x"
CALLS = GroupCalls(Consumes("tasks", KEY, "coder", broadcast=False), CONSUMER)
OTHER = StreamKeys("{team.results}")


@pytest.fixture
async def index(broker: Broker) -> ResourceIndex:
    index = ResourceIndex()
    for key, stream in ((KEY, STREAM), (OTHER.stream, a_stream("results"))):
        await broker.apply(CreateStream(key, {"name": stream.metadata.name}))
        index.put(stream)
    for group in (a_group(), a_group("writer", deliver="All")):
        await broker.apply(CreateGroup(KEY, group.group_name, "0"))
        index.put(group)
    return index


@pytest.fixture
def raw(admin: redis.Redis) -> Iterator[redis.Redis]:
    """The administrator, who gets replies as bytes."""
    options = {**admin.connection_pool.connection_kwargs, "decode_responses": False}
    with redis.Redis(connection_pool=redis.ConnectionPool(**options)) as client:
        yield client


class Queue:
    """A stream of two groups: `coder`, whose consumer is told what to do, and `writer`, which is idle."""

    def __init__(self, raw: redis.Redis, index: ResourceIndex, broker: Broker) -> None:
        self.raw = raw
        self.finder = MessageFinder(index, broker)

    def add(self, number: int = 0, **fields: Any) -> str:
        return self.raw.xadd(KEY, {"m": envelope(number, **fields)}).decode()

    def take(self, key: str = KEY) -> None:
        self.raw.xreadgroup("coder", CONSUMER, {key: ">"})

    def held(self, **fields: Any) -> str:
        entry = self.add(**fields)
        self.take()
        return entry

    def fail(self, entry: str, delay: int) -> None:
        assert (
            self.raw.execute_command(*CALLS.retry(Pending(entry, CALLS.main), delay, 2, "Failed", "boom"))
            == DONE
        )

    def bury(self, entry: str) -> None:
        assert (
            self.raw.execute_command(
                *CALLS.dead_letter(Pending(entry, CALLS.main), 5, "MaxDeliveries", "boom")
            )
            == DONE
        )

    def settle(self, entry: str) -> None:
        assert self.raw.execute_command(*CALLS.settle(CALLS.main, "acked", [Pending(entry, CALLS.main)])) == [
            DONE
        ]

    async def states(self, entry: str) -> tuple[StateInGroup, StateInGroup]:
        found = await self.finder.message(STREAM, entry)
        coder, writer = found.groups
        assert (coder.group, writer.group) == ("coder", "writer")
        return coder, writer


@pytest.fixture
def queue(raw: redis.Redis, index: ResourceIndex, broker: Broker) -> Queue:
    return Queue(raw, index, broker)


async def test_a_message_waits_is_held_and_is_acknowledged(queue: Queue) -> None:
    entry = queue.add(7)
    assert [state.state for state in await queue.states(entry)] == ["Waiting", "Waiting"]
    queue.take()
    coder, writer = await queue.states(entry)
    assert (coder.state, coder.consumer, coder.pod, coder.attempts) == ("Held", CONSUMER, "coder-0", 1)
    assert coder.held_seconds is not None
    assert writer.state == "Waiting"
    queue.settle(entry)
    coder, writer = await queue.states(entry)
    assert (coder, writer.state) == (StateInGroup(group="coder", state=coder.state), "Waiting")
    assert coder.state == "Acknowledged"


async def test_the_whole_message_is_shown(queue: Queue) -> None:
    entry = queue.add(7, payload={"text": "x" * 100_000}, correlation_id="order-7")
    found = await queue.finder.message(STREAM, entry)
    assert (found.entry, found.stream, found.correlation_id) == (entry, "tasks", "order-7")
    assert found.payload == {"text": "x" * 100_000}


async def test_a_failed_message_is_delayed_then_due_then_held_then_dead(queue: Queue) -> None:
    later, soon = queue.held(), queue.held()
    queue.fail(later, 60_000)
    coder, _ = await queue.states(later)
    assert (coder.state, coder.attempts, coder.reason, coder.error) == ("Delayed", 2, "Failed", "boom")
    assert coder.due is not None
    queue.fail(soon, 0)
    coder, _ = await queue.states(soon)
    assert (coder.state, coder.attempts, coder.error, coder.due) == ("Retrying", 2, "boom", None)
    queue.take(KEYS.retry("coder"))
    coder, _ = await queue.states(soon)
    assert (coder.state, coder.attempts, coder.consumer) == ("Held", 3, CONSUMER)
    dead = queue.held()
    queue.bury(dead)
    ((letter, _),) = queue.raw.xrange(KEYS.dead_letters("coder"))
    coder, _ = await queue.states(dead)
    assert (coder.state, coder.attempts, coder.reason) == ("Dead", 5, "MaxDeliveries")
    assert (coder.error, coder.letter) == ("boom", letter.decode())


async def test_what_is_for_another_agent_is_said(queue: Queue) -> None:
    entry = queue.held(to="writer")
    queue.settle(entry)
    assert (await queue.states(entry))[0].state == "NotAddressed"
    broadcast = queue.held(to="broadcast")
    queue.settle(broadcast)
    assert (await queue.states(broadcast))[0].state == "Acknowledged"


async def test_what_is_trimmed_is_found_where_a_group_has_it(queue: Queue) -> None:
    dead, lost = queue.held(), queue.add(1)
    queue.bury(dead)
    queue.raw.xdel(KEY, dead, lost)
    found = await queue.finder.message(STREAM, dead)
    assert [state.state for state in found.groups] == ["Dead", "Missing"]
    assert (found.entry, found.id, found.payload) == (dead, f"00000000-0000-4000-8000-{0:012}", {"number": 0})
    held = queue.held()
    queue.raw.xdel(KEY, held)
    found = await queue.finder.message(STREAM, held)
    assert (found.groups[0].state, found.problem, found.id) == ("Held", "it is gone from the stream", None)


async def test_what_was_never_there_is_not_found_and_it_says_how_far_back_the_stream_reaches(
    queue: Queue,
) -> None:
    first = queue.held()
    for entry in ("1-1", "99999999999999-0"):
        with pytest.raises(Refusal, match=f"reaches back to {first}") as refused:
            await queue.finder.message(STREAM, entry)
        assert refused.value.status == 404
    queue.raw.xtrim(KEY, maxlen=0)
    with pytest.raises(Refusal, match="the stream is empty"):
        await queue.finder.message(STREAM, "1-1")
    for entry in ("x", "1", "-", "1-1-1"):
        with pytest.raises(Refusal, match="no entry id") as refused:
            await queue.finder.message(STREAM, entry)
        assert refused.value.status == 422


async def test_a_group_that_the_server_has_lost_is_unknown(queue: Queue) -> None:
    entry = queue.add()
    queue.raw.xgroup_destroy(KEY, "coder")
    assert [state.state for state in await queue.states(entry)] == ["Unknown", "Waiting"]


async def test_headers_that_agents_make_up_are_bounded_and_printable(queue: Queue) -> None:
    entry = queue.held()
    queue.settle(entry)
    header = {"origin": entry, "attempts": -1, "reason": "\x1b[2J" * 900, "error": ["x"], "replay": "A.b"}
    queue.raw.xadd(KEYS.retry("coder"), {"x": json.dumps(header), "m": "{}"})
    coder, _ = await queue.states(entry)
    assert (coder.state, coder.attempts, coder.error, coder.replay) == ("Retrying", None, None, None)
    assert coder.reason is not None
    assert coder.reason.isprintable()
    assert len(coder.reason) <= 100


async def test_one_among_thousands_is_found(queue: Queue) -> None:
    ids = [queue.add(number) for number in range(3_000)]
    queue.take()
    for number, entry in enumerate(ids):
        (queue.bury if number % 3 else lambda each: queue.fail(each, 60_000))(entry)
    for number in (0, 1, 1_500, 1_501, 2_997, 2_999):
        coder, _ = await queue.states(ids[number])
        assert coder.state == ("Dead" if number % 3 else "Delayed"), number


class Moving:
    """Reads as a broker does, while the message moves: before each of these calls, counted from 1."""

    def __init__(self, broker: Broker, moves: dict[int, list[Callable[[], None]]]) -> None:
        self.broker, self.moves, self.calls = broker, moves, 0

    async def call(self, *command: Any) -> Any:
        self.calls += 1
        for move in self.moves.get(self.calls, ()):
            move()
        return await self.broker.call(*command)


@pytest.mark.parametrize("others", [0, 300], ids=["alone", "among others"])
@pytest.mark.parametrize("later", range(3))
@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("begins", ["Held", "Dead"])
async def test_a_message_that_moves_meanwhile_is_in_a_state_that_it_had(
    queue: Queue, broker: Broker, begins: str, at: int, later: int, *, others: int
) -> None:
    """Buried and replayed, twice, at any of the calls: at no time was it waiting or acknowledged."""
    raw: Any = queue.raw
    dlq, retry = KEYS.dead_letters("coder"), KEYS.retry("coder")
    entry = queue.held()
    for _ in range(others):
        raw.xadd(dlq, {"m": "{}", "origin": "1-1"})
    seen = {"Held"}

    def bury() -> None:
        source = CALLS.retries if raw.xlen(retry) else CALLS.main
        queue.take(source.key)
        (pending,) = raw.xpending_range(source.key, "coder", "-", "+", 1)
        held = Pending(pending["message_id"].decode(), source)
        call = CALLS.dead_letter(held, 5, "MaxDeliveries", "boom")
        assert raw.execute_command(*call) == DONE
        seen.update({"Held", "Dead"})

    def replay_it() -> None:
        ((letter, _),) = raw.xrevrange(dlq, count=1)
        of = ReplayOf(KEY, "coder", replay_id("again", str(uuid.uuid4())))
        moved = parse_moved(
            raw.execute_command(
                *replay(of, "dead", ("", letter.decode()), 1_000, [Selected(letter.decode())])
            )
        )
        assert moved.moved == 1
        seen.add("Retrying")

    if begins == "Dead":
        bury()
        seen = {"Dead"}
    moves = [bury, replay_it] * 2 if begins != "Dead" else [replay_it, bury] * 2
    steps: dict[int, list[Callable[[], None]]] = {}
    for number, move in enumerate(moves):
        steps.setdefault(at + number * later, []).append(move)
    moving = Moving(broker, steps)
    fate, _ = await find_fate(moving.call, KEY, "coder", entry)
    assert fate.state in seen | {"Unknown"}, (moving.calls, seen)
    if len(steps) == 1:
        assert fate.state in seen, moving.calls


async def test_a_conversation_is_found_over_all_streams(
    queue: Queue, index: ResourceIndex, broker: Broker
) -> None:
    streams = list(index.streams.values())
    reader = ConversationReader(index, broker)
    question = queue.add(1)
    for number in range(2, 600):
        queue.add(number, correlation_id="other")
    answer = queue.raw.xadd(OTHER.stream, {"m": envelope(9, correlation_id=ROOT)}).decode()
    again = queue.add(10, correlation_id=ROOT)
    found = await reader.conversation("team", streams, ROOT, None)
    assert [(each.stream, each.entry) for each in found.messages] == [
        ("tasks", question),
        ("results", answer),
        ("tasks", again),
    ]
    assert [(each.stream, each.scanned) for each in found.streams] == [("results", 1), ("tasks", 600)]
    assert (found.more, found.cursor) == (False, None)


async def test_a_long_conversation_has_pages_that_leave_nothing_out(
    queue: Queue, index: ResourceIndex, broker: Broker
) -> None:
    reader, streams = ConversationReader(index, broker), list(index.streams.values())
    for number in range(1, 1_300):
        key = OTHER.stream if number % 2 else KEY
        queue.raw.xadd(key, {"m": envelope(number, correlation_id=ROOT)})
    pages: list[ConversationAnswer] = []
    cursor = None
    while not pages or cursor is not None:
        pages.append(await reader.conversation("team", streams, ROOT, cursor))
        cursor = pages[-1].cursor
        assert pages[-1].more == (cursor is not None)
    seen = [each.id for found in pages for each in found.messages]
    assert len(pages) > 2
    assert len(seen) == len(set(seen)) == 1_299


async def test_a_stream_that_cannot_be_read_hides_no_other(
    queue: Queue, index: ResourceIndex, broker: Broker
) -> None:
    queue.raw.set(OTHER.stream, "x")
    entry = queue.add(1)
    found = await ConversationReader(index, broker).conversation(
        "team", list(index.streams.values()), ROOT, None
    )
    assert [each.entry for each in found.messages] == [entry]
    assert (found.streams[0].stream, found.streams[1].problem) == ("results", None)
    assert found.streams[0].problem


@pytest.mark.parametrize("cursor", ["tasks@x", "tasks@1-1-1", "tasks@(1-1"])
async def test_what_is_no_cursor_is_refused(index: ResourceIndex, broker: Broker, cursor: str) -> None:
    with pytest.raises(Refusal, match="query/cursor"):
        await ConversationReader(index, broker).conversation("team", [STREAM], ROOT, cursor)


ROOT = f"00000000-0000-4000-8000-{1:012}"


async def test_consumers_come_with_what_they_hold(queue: Queue, index: ResourceIndex, broker: Broker) -> None:
    reader, group = ConsumersReader(index, broker), a_group()
    index.put(group)
    assert (await reader.consumers(group)).consumers == ()
    first = queue.held()
    queue.fail(queue.held(), 0)
    queue.take(KEYS.retry("coder"))
    for number in range(3):
        queue.add(number)
    queue.raw.xreadgroup("coder", "coder-1.abc-2-x", {KEY: ">"})
    queue.raw.xgroup_createconsumer(KEY, "coder", b"\xff\x1b")
    found = await reader.consumers(group)
    assert [(each.pod, each.pending) for each in found.consumers][:2] == [("coder-1", 3), ("coder-0", 2)]
    of_stream, retry = sorted(found.consumers[1].holds, key=lambda each: each.retry)
    assert (of_stream.entry, of_stream.retry, retry.retry, retry.deliveries) == (first, False, True, 1)
    assert found.consumers[2].name.isprintable()
    assert not found.more


async def test_of_many_consumers_those_that_hold_most_are_listed(
    queue: Queue, index: ResourceIndex, broker: Broker
) -> None:
    reader, group = ConsumersReader(index, broker), a_group()
    index.put(group)
    for number in range(LISTED + 20):
        queue.raw.xgroup_createconsumer(KEY, "coder", f"coder-{number}.abc-1-x")
    for number in range(LISTED + 50):
        queue.add(number)
    queue.take()
    found = await reader.consumers(group)
    assert (len(found.consumers), found.more) == (LISTED, True)
    assert (found.consumers[0].pending, len(found.consumers[0].holds)) == (LISTED + 50, LISTED)
