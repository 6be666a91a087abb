"""Receipts, statistics, admission, order and other groups are as they would be without a replay."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import pytest
import redis

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE
from agentstream.protocol.replaying import (
    MOVED,
    Selected,
)
from agentstream_operator.broker.broker import Broker
from support.entries import HOUR, KEY, Pending, fill, spec
from support.replays import CALLS, KEYS, LATER, PLAIN, Replays


def broadcast(replays: Replays, count: int) -> list[str]:
    """Adds messages that receipts may ask for."""
    message = commands.message(b"x", ("receipts", KEYS.receipts))
    reply = replays.call(commands.add(KEYS, secrets.token_hex(8), 0, 60_000, message * count))
    return [str(entry.decode()) for entry in reply.split()[1:]]


def make_due(stream: redis.Redis) -> None:
    stream.eval("redis.call('ZADD', KEYS[1], 1, redis.call('ZRANGE', KEYS[1], 0, 0)[1])", 1, KEYS.delay("g"))


async def clean(broker: Broker) -> None:
    while (await broker.janitor(spec("g", broadcast=True, min_age=0))).more:
        pass


@pytest.mark.parametrize("is_finished", [False, True], ids=["expected", "finished"])
async def test_an_acknowledged_broadcast_stays_so_whatever_becomes_of_its_replay(
    replays: Replays, stream: redis.Redis, broker: Broker, *, is_finished: bool
) -> None:
    (entry, _) = broadcast(replays, 2)
    replays.handle(1)
    assert replays.state_of(entry) == "acknowledged"
    if is_finished:
        await broker.janitor(spec("g", broadcast=True))
        assert stream.zscore(KEYS.receipts, entry) is None
    replays.move([entry])
    for later in (0, HOUR):
        assert replays.state_of(entry) == "acknowledged"
        (held,) = replays.read(KEYS.retry("g"), 1)
        replays.call(CALLS.retry(held, later, 1, "Failed", "boom"))
        assert replays.state_of(entry) == "acknowledged"
    await broker.janitor(spec("g", broadcast=True))
    make_due(stream)
    replays.call(CALLS.sweep(HOUR, 1000, 0, now=False))
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.release(CALLS.retries, "begun", [held]))
    assert replays.state_of(entry) == "acknowledged"
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.dead_letter(held, 3, "MaxDeliveries", "boom"))
    assert replays.state_of(entry) == "acknowledged"
    await broker.janitor(spec("g", broadcast=True))
    assert replays.state_of(entry) == "acknowledged"


@pytest.mark.parametrize("outcome", ["acked", "dead"])
def test_a_dead_broadcast_is_retrying_until_its_replay_is_settled(
    replays: Replays, stream: redis.Redis, outcome: str
) -> None:
    (entry,) = broadcast(replays, 1)
    (held,) = replays.read(KEY, 1)
    replays.call(CALLS.dead_letter(held, 3, "MaxDeliveries", "boom"))
    assert replays.state_of(entry) == "dead"
    ((letter, _),) = stream.xrange(KEYS.dead_letters("g"))
    replays.move([letter], dead=True)
    assert replays.state_of(entry) == "retrying"
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.retry(held, 0, 1, "Failed", "boom"))
    assert replays.state_of(entry) == "retrying"
    (held,) = replays.read(KEYS.retry("g"), 1)
    if outcome == "acked":
        replays.call(CALLS.settle(CALLS.retries, "acked", [held]))
    else:
        replays.call(CALLS.dead_letter(held, 3, "MaxDeliveries", "boom"))
    assert replays.state_of(entry) == {"acked": "acknowledged", "dead": "dead"}[outcome]


def test_a_dead_broadcast_stays_dead_until_its_copy_is_acknowledged(replays: Replays) -> None:
    (entry,) = broadcast(replays, 1)
    (held,) = replays.read(KEY, 1)
    replays.call(CALLS.dead_letter(held, 3, "MaxDeliveries", "boom"))
    replays.move([entry])
    assert replays.state_of(entry) == "dead"
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.retry(held, 0, 1, "Failed", "boom"))
    assert replays.state_of(entry) == "dead"
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.settle(CALLS.retries, "acked", [held]))
    assert replays.state_of(entry) == "acknowledged"


@pytest.mark.parametrize(
    ("age", "bucket"),
    [(95_000, "le:120000"), (HOUR - 60_000, "le:3600000"), (2 * HOUR, "le:inf")],
)
def test_the_slowest_message_is_noted_beside_its_bucket(
    replays: Replays, stream: redis.Redis, age: int, bucket: str
) -> None:
    fill(stream, 1, age=age)
    replays.handle(1)
    stats = replays.stats()
    assert stats[bucket] == "1"
    assert age <= int(stats["slowest"]) < age + 20_000
    # a faster one changes nothing of it
    fill(stream, 1)
    replays.handle(1)
    assert replays.stats()["slowest"] == stats["slowest"]


def test_latencies_are_those_of_first_deliveries(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 3, age=2 * HOUR)
    replays.handle(3)
    before = {name: count for name, count in replays.stats().items() if name.startswith("le:")}
    replays.move(ids)
    held = replays.read(KEYS.retry("g"), 3)
    replays.call(CALLS.settle(CALLS.retries, "acked", held))
    after = {name: count for name, count in replays.stats().items() if name.startswith("le:")}
    assert after == before == {"le:inf": "3"}
    assert replays.stats()["acked"] == "6"


async def test_admission_and_other_groups_see_nothing_of_it(
    replays: Replays, stream: redis.Redis, broker: Broker
) -> None:
    replays.call(commands.create_group(KEY, "h", "0"))
    ids = fill(stream, 5)
    replays.handle(5)
    stream.xreadgroup("h", "pod.1", {KEY: ">"}, count=3)
    stream.xack(KEY, "h", ids[0])
    limits = spec("g", "h", max_length=5)
    await broker.janitor(limits)
    names = ("h", KEYS.gate, KEYS.stats("h"), KEYS.parked("h"), KEYS.retry("h"))

    def seen() -> tuple[object, ...]:
        group = [one for one in stream.xinfo_groups(KEY) if one["name"] == "h"]
        return group, stream.xpending(KEY, "h"), *(stream.dump(name) for name in names[1:])

    before = seen()
    assert stream.exists(KEYS.gate)
    replays.move(ids)
    assert seen() == before
    await broker.janitor(limits)
    assert seen() == before
    held = replays.read(KEYS.retry("g"), 5)
    replays.call(CALLS.settle(CALLS.retries, "acked", held))
    await broker.janitor(limits)
    assert seen() == before


def keyed(replays: Replays, stream: redis.Redis, count: int) -> list[str]:
    """Adds messages with one ordering key, and has the group finish them."""
    messages = commands.message(b"x", ("key", "k")) * count
    reply = replays.call(commands.add(KEYS, secrets.token_hex(8), 0, 60_000, messages))
    replays.handle(count, PLAIN)
    return [str(entry.decode()) for entry in reply.split()[1:]]


def replay_keyed(replays: Replays, stream: redis.Redis, ids: Sequence[str]) -> list[Pending]:
    """Replays entries with one ordering key. Returns them as the group's consumer holds them."""
    replays.move([Selected(entry, "", "k") for entry in ids])
    after = [fields[b"p"].decode() for _, fields in replays.raw.xrange(KEYS.retry("g"))]
    held = replays.read(KEYS.retry("g"), len(ids))
    for one, before in zip(held, after, strict=True):
        one.after = before
    return held


def test_a_turn_comes_when_the_one_before_it_in_the_replay_is_finished(
    replays: Replays, stream: redis.Redis
) -> None:
    ids = keyed(replays, stream, 4)
    first, second, third = replay_keyed(replays, stream, [ids[0], ids[2], ids[3]])
    assert [one.after for one in (first, second, third)] == ["0-0", ids[0], ids[2]]
    calls = PLAIN

    def turns() -> list[int]:
        asked = [replace(one, after=one.after or "") for one in (second, third)]
        return list(replays.call(calls.turn(calls.retries, asked)))

    assert turns() == [0, 0]
    replays.call(calls.retry(first, 0, 1, "Failed", "boom"))
    assert turns() == [0, 0]
    (first,) = replays.read(KEYS.retry("g"), 1)
    first.after = "0-0"
    replays.call(calls.settle(calls.retries, "acked", [first]))
    assert turns() == [1, 0]
    replays.call(calls.dead_letter(second, 3, "MaxDeliveries", "boom"))
    assert turns() == [0, 1]
    replays.call(calls.settle(calls.retries, "acked", [third]))
    assert not stream.exists(KEYS.parked("g"))


async def test_the_janitor_keeps_order_while_a_replay_goes_on_and_forgets_it_with_lost_retries(
    replays: Replays, stream: redis.Redis, broker: Broker
) -> None:
    ids = keyed(replays, stream, 3)
    first, second, _ = replay_keyed(replays, stream, ids)
    await clean(broker)
    asked = [replace(second, after=ids[0])]
    assert replays.call(PLAIN.turn(PLAIN.retries, asked)) == [0]
    # somebody deletes retries by hand
    stream.xdel(KEYS.retry("g"), *(one.id for one in (first, second)))
    stream.xtrim(KEYS.retry("g"), maxlen=0)
    await clean(broker)
    assert not stream.exists(KEYS.parked("g"))


async def test_what_the_janitor_trims_meanwhile_is_gone(
    replays: Replays, stream: redis.Redis, broker: Broker
) -> None:
    ids = fill(stream, 6, age=HOUR)
    replays.handle(6)
    assert replays.move(ids[:2]).moved == 2
    fill(stream, 1)
    await broker.janitor(spec("g", min_age=0, on_full="Backpressure", max_length=1))
    assert stream.xlen(KEY) == 1
    assert replays.move(ids[2:], at=ids[1]) == (MOVED, ids[5], 0, 2)
    assert replays.progress().skipped == {"gone": 4}
    assert replays.progress().matched == 6


def test_two_replays_of_a_message_are_two_deliveries(replays: Replays, stream: redis.Redis) -> None:
    ids = keyed(replays, stream, 2)
    replays.move([Selected(entry, "", "k") for entry in ids])
    replays.move([Selected(entry, "", "k") for entry in ids], of=LATER)
    held = replays.read(KEYS.retry("g"), 4)
    for one in held:
        one.after = "0-0"
    assert replays.call(PLAIN.settle(PLAIN.retries, "acked", held)) == [DONE] * 4
    assert (replays.progress().handled, replays.progress(LATER).handled) == (2, 2)
    assert not stream.exists(KEYS.parked("g"))
