"""What is remembered of ordering keys is forgotten when nothing can come to wait for it."""

from __future__ import annotations

import secrets

import pytest
import redis

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup
from support.entries import HOUR, KEY, fill, left, read, spec
from support.servers import Server

ORDER = StreamKeys(KEY).order


def add(admin: redis.Redis, *keys: str) -> list[str]:
    """Adds a message for each ordering key, in one batch."""
    names = StreamKeys(KEY)
    messages = [argument for key in keys for argument in ("x", 2, "key", key)]
    head = (names.sent(secrets.token_hex(8)), 1, 60_000, names.gate, names.order)
    reply = str(admin.fcall("as1_add", 1, KEY, *head, *messages))
    return reply.split(" ")[1:]


def predecessors(admin: redis.Redis) -> dict[str, str]:
    entries = admin.xrange(KEY)
    return {entry: fields["p"] for entry, fields in entries if "p" in fields}


async def test_each_entry_names_the_one_before_it_with_the_same_key(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    a1, b1, a2 = add(stream, "a", "b", "a")
    a3, b2 = add(stream, "a", "b")
    stream.xadd(KEY, {"m": "without a key"})
    assert predecessors(stream) == {a1: "0-0", b1: "0-0", a2: a1, a3: a2, b2: b1}
    assert stream.hgetall(ORDER) == {"a": a3, "b": b2}


async def test_keys_are_forgotten_once_their_last_entry_is_trimmed(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    old = {f"old-{n}": entry for n, entry in enumerate(fill(stream, 3_000, age=2 * HOUR))}
    stream.hset(ORDER, mapping=old)
    stream.hset(ORDER, "made up", "x")
    fill(stream, 100)
    young = add(stream, *(f"young-{n}" for n in range(100)))
    read(stream, ack=True)
    # a page at a time; at once after one another while there is much to forget
    await broker.janitor(spec("g"))
    assert stream.hlen(ORDER) < 1_000
    for _ in range(3):
        await broker.janitor(spec("g"))
    assert stream.hgetall(ORDER) == {f"young-{n}": entry for n, entry in enumerate(young)}


async def test_nothing_is_forgotten_while_a_declared_group_is_missing(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    (entry,) = fill(stream, 1, age=2 * HOUR)
    stream.hset(ORDER, "k", entry)
    fill(stream, 300)
    stream.xtrim(KEY, maxlen=300, approximate=False)
    assert (await broker.janitor(spec("g", "gone"))).missing == "gone"
    assert stream.hgetall(ORDER) == {"k": entry}
    await broker.janitor(spec("g"))
    assert stream.exists(ORDER) == 0


async def test_a_key_is_remembered_while_a_group_tries_its_last_entry_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    await broker.apply(CreateGroup(KEY, "h", "0"))
    (entry,) = fill(stream, 1, age=2 * HOUR)
    fill(stream, 300)
    stream.hset(ORDER, "k", entry)
    parked = StreamKeys(KEY).parked("h")
    stream.hset(parked, entry, "retrying")
    stream.xadd(StreamKeys(KEY).retry("h"), {"m": "x"})
    stream.xtrim(KEY, maxlen=300, approximate=False)
    for group in "gh":
        read(stream, group, ack=True)
    await broker.janitor(spec("g", "h"))
    assert stream.hgetall(ORDER) == {"k": entry}
    stream.hset(parked, entry, "dead")
    await broker.janitor(spec("g", "h"))
    assert stream.exists(ORDER) == 0


async def test_a_key_is_remembered_while_a_group_holds_what_was_trimmed_by_length(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    (entry,) = add(stream, "k")
    read(stream)
    for _ in range(300):
        stream.xadd(KEY, {"m": "x"})
    read(stream)
    await broker.janitor(spec("g", on_full="TrimOldest", max_length=100))
    assert entry not in left(stream)
    assert stream.hgetall(ORDER) == {"k": entry}
    stream.xack(KEY, "g", entry)
    read(stream)
    stream.xack(KEY, "g", *(p["message_id"] for p in stream.xpending_range(KEY, "g", "-", "+", 1000)))
    await broker.janitor(spec("g"))
    assert stream.exists(ORDER) == 0


@pytest.mark.parametrize("group", ["g", "late"])
async def test_a_key_is_remembered_as_long_as_a_group_may_still_begin_with_its_entry(
    server: Server, broker: Broker, stream: redis.Redis, group: str
) -> None:
    (first,) = add(stream, "k")
    read(stream, ack=True)
    await broker.janitor(spec("g"))
    (second,) = add(stream, "k")
    await broker.apply(CreateGroup(KEY, "late", "0"))
    assert read(stream, group) == ([first, second] if group == "late" else [second])
    assert predecessors(stream)[second] == first


async def test_a_stream_that_is_deleted_leaves_nothing_of_its_keys(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    add(stream, "k")
    assert stream.fcall("as1_delete_stream", 1, KEY, StreamKeys(KEY).base, 0, "g") == 1
    assert stream.exists(ORDER) == 0
