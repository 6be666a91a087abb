"""A header that a producer made up prevents nothing, and says nothing: only the functions write headers."""

from __future__ import annotations

import pytest
import redis

from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from support.entries import KEY, Pending, read, spec

KEYS = StreamKeys(KEY)
CALLS = GroupCalls(Consumes("tasks", KEY, "g", broadcast=True), "c")
MADE_UP = (
    '{"a":nan}',
    '{"a":1e999}',
    '{"origin":"abc"}',
    '{"origin":""}',
    '{"origin":"since"}',
    '{"origin":"1-0"}',
    '{"fence":1e400,"attempts":nan}',
    '{"attempts":{"a":1}}',
    '{"1":1,"9999999":2}',
    '{"reason":{"a":1},"error":[1]}',
    "[1,2]",
    "null",
    "[" * 2000,
)


def read_retries(admin: redis.Redis) -> list[Pending]:
    ((_, entries),) = admin.xreadgroup("g", "c", {KEYS.retry("g"): ">"})  # type: ignore[misc]
    return [Pending(entry, CALLS.retries) for entry, _ in entries]


@pytest.mark.parametrize("header", MADE_UP)
async def test_a_header_that_a_producer_made_up_prevents_no_settling(
    broker: Broker, stream: redis.Redis, header: str
) -> None:
    stream.xadd(KEY, {"m": "x", "x": header})
    stream.xadd(KEY, {"m": "x"})
    for entry in read(stream):
        assert stream.execute_command(*CALLS.retry(Pending(entry), 0, 1, "Failed", "boom")) == DONE
    held = read_retries(stream)
    assert stream.execute_command(*CALLS.begin(CALLS.retries, held)) == [2, 2]
    begun = [Pending(one.id, one.source, 2) for one in held]
    assert stream.execute_command(*CALLS.release(CALLS.retries, "begun", begun)) == [DONE, DONE]
    held = read_retries(stream)
    assert stream.execute_command(*CALLS.settle(CALLS.retries, "acked", held)) == [DONE, DONE]
    assert stream.hgetall(KEYS.parked("g")) == {}


async def test_a_dead_letter_has_the_origin_that_the_server_gave_it(
    broker: Broker, stream: redis.Redis
) -> None:
    for number in (1, 2):
        made_up = '{"origin":"1-0","fence":7,"attempts":9}'
        stream.xadd(KEY, {"m": "x", "x": made_up}, id=f"1000-{number}")
    stream.xadd(KEY, {"m": "x"})
    given_up, expired = read(stream, count=2)
    assert stream.execute_command(*CALLS.dead_letter(Pending(given_up), 1, "Failed", "boom")) == DONE
    stream.xclaim(KEY, "g", "c", 0, [expired], idle=60_000, justid=True)
    await broker.janitor(spec("g", max_length=1, min_age=0, lease=1000, broadcast=True))
    letters = [(fields["origin"], fields["fence"]) for _, fields in stream.xrange(KEYS.dead_letters("g"))]
    assert letters == [(given_up, "1"), (expired, "1")]
