"""No call of the library does more work because there is more of anything: it says that there is more.

Five times as many entries of every kind, or large ones, must not make any call more work. Work is counted
inside the server: the commands that a function calls, and what they are given and reply with.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
import redis

from agentstream.protocol import commands, replaying, whereabouts
from agentstream.protocol.commands import DONE, MORE, PAGE, Command, GroupCalls
from agentstream.protocol.entry import Entry, Source
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.replaying import FIRST, LAST, MOVED, ReplayOf, Selected, parse_moved, parse_page
from agentstream.protocol.routes import Consumes
from agentstream.protocol.whereabouts import parse_whereabouts
from agentstream.transport.client import Client
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import Gone
from support.entries import HOUR, KEY, fill
from support.servers import Server
from support.work import CountedCalls, Work

KEYS = StreamKeys(KEY)
POLICY = Consumes("tasks", KEY, "g", broadcast=True)
LEASE = HOUR
# more than is counted, looked at, claimed or moved at a time
MANY = 4 * PAGE + 100
LARGE = 512 << 10

# old: as many entries are pending, undelivered behind a deletion, retried, due, given up, ordered and dead
_BUILD = """
local key, n, body, retry = KEYS[1], tonumber(ARGV[1]), string.rep('x', ARGV[2]), KEYS[1] .. ':retry:g'
local header = '{"origin":"1-1","attempts":1}'
redis.call('FLUSHALL')
redis.call('XGROUP', 'CREATE', key, 'g', '0', 'MKSTREAM')
redis.call('XGROUP', 'CREATE', retry, 'g', '0', 'MKSTREAM')
redis.call('HSET', key .. ':meta', 'name', 'tasks')
for i = 1, n do
  redis.call('XADD', key, '1000-' .. i, 'm', body)
  redis.call('XADD', retry, '1000-' .. i, 'm', body, 'x', header)
  redis.call('XADD', key .. ':dlq:g', '1000-' .. i, 'm', body)
  redis.call('ZADD', key .. ':delay:g', 1, cmsgpack.pack({'1-' .. i, 1, {'m', body, 'x', header}}))
  redis.call('HSET', key .. ':parked:g', '1-' .. i, 'dead')
  redis.call('HSET', key .. ':order', 'k' .. i, '1-' .. i)
end
for _, stream in ipairs({key, retry}) do
  redis.call('XREADGROUP', 'GROUP', 'g', 'pod.1', 'STREAMS', stream, '>')
  for i = 1, n do redis.call('XCLAIM', stream, 'g', 'pod.1', 0, '1000-' .. i, 'IDLE', 86400000, 'JUSTID') end
end
for i = 1, n do redis.call('XADD', key, '2000-' .. i, 'm', body) end
redis.call('XDEL', key, '2000-2')
redis.call('XADD', key, '9000000-1', 'm', 'x')
"""


@dataclass(frozen=True)
class Held:
    """An entry of the world that `pod.1` holds."""

    source: Source
    id: str
    counter: int = 1
    after: str | None = "1-0"


class World:
    """A stream with a group that is behind in everything by `n` entries."""

    def __init__(self, n: int, admin: redis.Redis, call: CountedCalls) -> None:
        self.n, self.admin, self.call = n, admin, call
        self.dead, self.live = GroupCalls(POLICY, "pod.1"), GroupCalls(POLICY, "pod.z")

    def held(self, source: Source) -> list[Held]:
        """As many of the entries that `pod.1` holds as callers name in one call."""
        return [Held(source, f"1000-{i}") for i in range(1, min(self.n, PAGE) + 1)]

    async def for_all(self, source: Source, build: Callable[[Source, list[Held]], Command]) -> None:
        """Repeats a call until it has replied for each entry."""
        holds = self.held(source)
        while holds:
            codes = await self.call(*build(source, holds))
            assert set(codes) == {DONE}
            del holds[: len(codes)]


async def add(world: World) -> None:
    await world.call(*commands.add(KEYS, "token", 0, 1000, commands.message(b"x", ("key", "k1"))))


async def reply(world: World) -> None:
    await world.call(*commands.reply(f"{KEY}:reply:x", 1000, ("m", b"x")))


async def receipt(world: World) -> None:
    await world.call(*commands.receipt(KEYS, ("g",), ("1000-1",)))


async def once(world: World) -> None:
    await world.call(*commands.once(KEY, KEYS.done("g", "k"), "token", 1000))


async def end_once(world: World) -> None:
    await world.call(*commands.end_once(KEY, KEYS.done("g", "k"), "token", "done", 1000))


async def originals(world: World) -> None:
    for first in range(0, world.n, PAGE):
        met = (Entry(world.live.main, "", f"1-{n}", b"%d" % n) for n in range(first, first + PAGE))
        await world.call(*world.live.originals(met))


async def turn(world: World) -> None:
    await world.call(*world.live.turn(world.live.main, world.held(world.live.main)))


async def take(world: World) -> None:
    for source in world.live.sources:
        start, taken = b"-", 0
        while start:
            start, entries = await world.call(*world.live.take(source, "pod.1", start.decode(), 10_000))
            taken += len(entries)
        assert taken == world.n


async def sweep(world: World) -> None:
    moved_in_all, claimed, wait, moved = 0, 0, 0, 0
    while not wait or moved:
        command = world.live.sweep(LEASE, 1000, 10_000, now=True)
        moved, entries, retries, wait = await world.call(*command)
        moved_in_all, claimed = moved_in_all + moved, claimed + len(entries) + len(retries)
    assert (moved_in_all, claimed) == (world.n, 2 * world.n)


async def begin(world: World) -> None:
    for source in world.dead.sources:
        assert set(await world.call(*world.dead.begin(source, world.held(source)))) == {2}


async def renew(world: World) -> None:
    world.admin.xclaim(KEY, "g", "pod.1", 0, [held.id for held in world.held(world.dead.main)], justid=True)
    assert set(await world.call(*world.dead.renew(world.dead.main, LEASE, world.held(world.dead.main)))) == {
        DONE
    }


async def release(world: World) -> None:
    for source in world.dead.sources:
        await world.for_all(source, lambda source, holds: world.dead.release(source, "begun", holds))


async def settle(world: World) -> None:
    for source in world.dead.sources:
        await world.for_all(source, lambda source, holds: world.dead.settle(source, "acked", holds))


async def retry(world: World) -> None:
    assert await world.call(*world.dead.retry(world.held(world.dead.main)[0], 0, 1, "Failed", "boom")) == DONE


async def dead_letter(world: World) -> None:
    held = world.held(world.dead.main)[0]
    assert await world.call(*world.dead.dead_letter(held, 1, "Failed", "boom")) == DONE


async def create_stream(world: World) -> None:
    await world.call(*commands.create_stream(KEY, {"name": "tasks"}))


async def set_contracts(world: World) -> None:
    await world.call(*commands.set_contracts(KEY, "digest", {"event@1": "{}"}))


async def create_group(world: World) -> None:
    for name, start in (("first", "0"), ("middle", "1000-5"), ("last", "$")):
        assert await world.call(*commands.create_group(KEY, name, start)) == 1


async def destroy_group(world: World) -> None:
    while (reply := await world.call(*commands.destroy_group(KEY, "g"))) == MORE:
        pass
    assert reply == 1
    assert not world.admin.xinfo_groups(KEY)


async def heal_group(world: World) -> None:
    while (reply := await world.call(*commands.heal_group(KEY, "g", again=True))) == MORE:
        pass
    assert reply == 1
    assert world.admin.xpending(KEY, "g")["pending"] == 0


async def heal_ids(world: World) -> None:
    world.admin.xadd(KEY, {"m": "x"}, id="32503680000000-0")
    while (reply := await world.call(*commands.heal_ids(KEY, ("g",)))) == MORE:
        pass
    assert reply == 1
    assert (world.admin.xlen(KEY), world.admin.xlen(KEYS.retry("g"))) == (0, 3 * world.n + 1)


async def delete_stream(world: World) -> None:
    assert await world.call(*commands.delete_stream(KEY, ("g",), only_if_empty=True)) == 0
    assert await world.call(*commands.delete_stream(KEY, ("g",), only_if_empty=False)) == 1


async def observe(world: World) -> None:
    seen = json.loads(await world.call(*commands.observe(KEY, ("g",), trusts_lag=False)))
    group = seen["groups"]["g"]
    assert group["pending"] == world.n
    assert group["oldest_undelivered"] == "2000-1"
    if group["exact"]:
        assert group["undelivered"] == world.n


async def measure(world: World) -> None:
    left = [(KEY, "", ("g",))] * 10
    while left:
        _, *replies = await world.call(*commands.measure(left, trusts_lag=True))
        assert all(reply.startswith(b"{") for reply in replies)
        del left[: len(replies)]


async def release_pod(world: World) -> None:
    for retries in (False, True):
        start, released = b"-", 0
        while start:
            command = commands.release_pod(
                KEY, "g", ("pod", None), start.decode(), for_good=True, retries=retries
            )
            start, number = await world.call(*command)
            released += number
        assert released == world.n


async def remove_consumers(world: World) -> None:
    assert await world.call(*commands.remove_consumers(KEY, "g", "other", None)) == []


async def janitor(world: World) -> None:
    limits, groups = (HOUR, 10, 0, "TrimAcknowledged", 100_000), [("g", LEASE, HOUR)]
    command = commands.janitor(KEY, limits, groups, trusts_lag=False, broadcast=True)
    moved, expired, more = 0, 0, True
    while more:
        report = json.loads(await world.call(*command))
        moved, expired, more = moved + report["moved"], expired + report["expired"], report["more"]
    assert (moved, expired) == (world.n, world.n)
    assert world.admin.xlen(f"{KEY}:retry:g") == 2 * world.n
    assert world.admin.hlen(f"{KEY}:order") <= world.n / 10
    assert world.admin.xlen(f"{KEY}:dlq:g") <= world.n + 100


async def page(world: World) -> None:
    found, start = 0, FIRST
    while True:
        got = parse_page(await world.call(*replaying.page(KEY, start, LAST, 10_000)))
        found += len(got.entries)
        if got.next is None:
            break
        start = got.next
    assert found == 2 * world.n


async def replay(world: World) -> None:
    for source, ids in (("dead", 1000), ("stream", 1000), ("stream", 2000)):
        of = ReplayOf(KEY, "g", f"{source}.{ids}")
        selected = [Selected(f"{ids}-{n}", "", "k") for n in range(1, min(world.n, PAGE) + 1)]
        at = ""
        while selected:
            cursors = at, f"{ids}-{world.n}"
            reply = await world.call(*replaying.replay(of, source, cursors, 10**6, selected))  # type: ignore[arg-type]
            code, at, moved, _ = parse_moved(reply)
            assert (code, moved > 0) == (MOVED, source == "dead")
            del selected[: moved if source == "dead" else len(selected)]


async def drop(world: World) -> None:
    letters = [f"1000-{n}" for n in range(1, min(world.n, PAGE) + 1)]
    await world.call(*replaying.drop(ReplayOf(KEY, "g", "r.1"), ("", letters[-1]), letters))


async def replay_state(world: World) -> None:
    await world.call(*replaying.progress(ReplayOf(KEY, "g", "r.1")))


async def end_replay(world: World) -> None:
    await world.call(*replaying.end(ReplayOf(KEY, "g", "r.1")))


async def look_for(world: World) -> None:
    rank: int | None = 0
    before: str | None = LAST
    while rank is not None or before is not None:
        command = whereabouts.whereabouts(KEY, "g", "5-5", rank, before)
        found = parse_whereabouts(await world.call(*command))
        assert (found.retry, found.holder, found.last) == (None, None, f"1000-{world.n}")
        rank, before = found.rank, found.before


async def revision(world: World) -> None:
    await world.call(*commands.REVISION)


Case = Callable[[World], Awaitable[None]]
CASES: dict[str, Case] = {
    "as1_add": add,
    "as1_reply": reply,
    "as1_receipt": receipt,
    "as1_once": once,
    "as1_end_once": end_once,
    "as1_originals": originals,
    "as1_turn": turn,
    "as1_take": take,
    "as1_sweep": sweep,
    "as1_begin": begin,
    "as1_renew": renew,
    "as1_release": release,
    "as1_settle": settle,
    "as1_retry": retry,
    "as1_dead_letter": dead_letter,
    "as1_create_stream": create_stream,
    "as1_set_contracts": set_contracts,
    "as1_create_group": create_group,
    "as1_destroy_group": destroy_group,
    "as1_delete_stream": delete_stream,
    "as1_heal_group": heal_group,
    "as1_heal_ids": heal_ids,
    "as1_observe": observe,
    "as1_measure": measure,
    "as1_orphan": release_pod,
    "as1_remove_consumers": remove_consumers,
    "as1_janitor": janitor,
    "as1_page": page,
    "as1_replay": replay,
    "as1_drop": drop,
    "as1_replay_state": replay_state,
    "as1_end_replay": end_replay,
    "as1_whereabouts": look_for,
    "as1_revision": revision,
}


@pytest.fixture
async def counted(wire: Client, stream: redis.Redis) -> AsyncIterator[CountedCalls]:
    """Calls of a library that counts its work; the group `g` is there."""
    call = CountedCalls(wire)
    await call.load()
    return call


async def most(case: Case, n: int, body: int, admin: redis.Redis, call: CountedCalls) -> Work:
    """The work of the greatest call in a world of this size, which is left empty."""
    admin.eval(_BUILD, 1, KEY, str(n), str(body))
    call.most = Work(0, 0, 0)
    await case(World(n, admin, call))
    return call.most


async def test_each_function_is_in_the_table(counted: CountedCalls, admin: redis.Redis) -> None:
    (library,) = admin.function_list(library="agentstream1")
    functions = dict(zip(library[::2], library[1::2], strict=True))["functions"]
    names = {dict(zip(flat[::2], flat[1::2], strict=True))["name"] for flat in functions}
    assert names - {"work_done"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
async def test_five_times_as_many_entries_are_no_more_work_for_a_call(
    server: Server, admin: redis.Redis, counted: CountedCalls, name: str
) -> None:
    few = await most(CASES[name], MANY, 100, admin, counted)
    many = await most(CASES[name], 5 * MANY, 100, admin, counted)
    # ids are longer, and pages of HSCAN not all of one size
    for before, after in zip(few, many, strict=True):
        assert after <= 1.15 * before + 100, (few, many)


@pytest.mark.parametrize("name", CASES)
async def test_large_entries_are_not_read_because_there_are_more_of_them(
    server: Server, admin: redis.Redis, counted: CountedCalls, name: str
) -> None:
    few = await most(CASES[name], 6, LARGE, admin, counted)
    many = await most(CASES[name], 18, LARGE, admin, counted)
    assert many.bytes <= few.bytes + LARGE / 2, (few, many)


async def test_retries_that_are_due_keep_nobody_from_reading(
    server: Server, admin: redis.Redis, counted: CountedCalls
) -> None:
    await most(once, MANY, 100, admin, counted)
    for stream in (KEY, KEYS.retry("g")):
        admin.xack(
            stream, "g", *(held["message_id"] for held in admin.xpending_range(stream, "g", "-", "+", MANY))
        )
    moved, claimed, retries, wait = await counted(
        *GroupCalls(POLICY, "pod.z").sweep(LEASE, 1000, 10, now=True)
    )
    # 0 would have the consumer claim on before it reads
    assert (moved, claimed, retries) == (PAGE, [], [])
    assert wait == 1


async def test_scans_of_both_streams_end_whenever_either_did(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    calls = GroupCalls(POLICY, "pod.z")

    def waits() -> int:
        *_, wait = stream.execute_command(*calls.sweep(LEASE, 1000, 10, now=False))
        return int(wait)

    def hold(key: str, count: int) -> None:
        fill(stream, count, key=key)
        stream.xreadgroup("g", "pod.1", {key: ">"}, count=count)

    # of each stream a call scans 5000
    hold(KEY, 6000)
    hold(KEYS.retry("g"), 3000)
    assert waits() == 0
    hold(KEYS.retry("g"), 3000)
    assert any(waits() > 0 for _ in range(8))


async def test_thousands_of_consumers_are_removed_by_and_by(
    server: Server, broker: Broker, stream: redis.Redis, counted: CountedCalls
) -> None:
    add_consumers = "for i = 1, 1200 do redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], 'g', 'pod.' .. i) end"
    stream.eval(add_consumers, 1, KEY)
    counted.most = Work(0, 0, 0)
    while await counted(*commands.remove_consumers(KEY, "g", "pod", None)):
        pass
    assert counted.most.calls < 3 * PAGE
    stream.eval(add_consumers, 1, KEY)
    assert len(await broker.remove_consumers(KEY, "g", Gone("pod"))) == 1200
    assert not stream.xinfo_consumers(KEY, "g")
