"""What receipts are told of broadcasts whose notes are gone: nothing that is not known."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest
import redis

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream, DestroyGroup
from support.entries import HOUR, KEY, Pending, now, read, spec

KEYS = StreamKeys(KEY)
CALLS = GroupCalls(Consumes("tasks", KEY, "g", broadcast=True), "c")


@dataclass
class News:
    """Broadcasts on the stream, which the group `g` reads."""

    admin: redis.Redis

    def broadcast(self) -> str:
        message = commands.message(b"x", ("receipts", KEYS.receipts))
        reply: str = self.admin.execute_command(*commands.add(KEYS, secrets.token_hex(8), 0, 60_000, message))
        return reply.split()[1]

    def earlier(self, age: int) -> str:
        """A broadcast so many ms ago; none was later."""
        at = now(self.admin) - age
        entry: str = self.admin.xadd(KEY, {"m": "x"}, id=f"{at}-1")  # type: ignore[assignment]
        self.admin.zadd(KEYS.receipts, {"since": at, entry: at}, nx=True)
        return entry

    def give_up(self) -> None:
        """The group gives up what it has not read yet."""
        for entry in read(self.admin):
            assert self.admin.execute_command(*CALLS.dead_letter(Pending(entry), 1, "Failed", "boom")) == DONE

    def acknowledge(self) -> None:
        """The group acknowledges what it has not read yet."""
        held = [Pending(entry) for entry in read(self.admin)]
        assert set(self.admin.execute_command(*CALLS.settle(CALLS.main, "acked", held))) == {DONE}

    def states(self, *entries: str) -> list[str]:
        states: list[str] = self.admin.execute_command(*commands.receipt(KEYS, ("g",), entries))
        return states


@pytest.fixture
def news(stream: redis.Redis) -> News:
    return News(stream)


@pytest.mark.parametrize("start", ["0", "$"])
async def test_a_group_that_was_made_again_did_not_acknowledge_what_the_first_one_gave_up(
    broker: Broker, news: News, start: str
) -> None:
    given_up = news.broadcast()
    news.give_up()
    await broker.janitor(spec("g", broadcast=True))
    assert news.states(given_up) == ["dead"]
    await broker.apply(DestroyGroup(KEY, "g"))
    await broker.apply(CreateGroup(KEY, "g", start))
    assert news.states(given_up) == ["missing"]
    read(news.admin, ack=True)
    assert news.states(given_up) == ["missing"]
    later = news.broadcast()
    news.acknowledge()
    await broker.janitor(spec("g", broadcast=True))
    assert news.states(given_up, later) == ["missing", "acknowledged"]


async def test_a_group_that_is_made_later_is_asked_for_what_is_on_its_way(broker: Broker, news: News) -> None:
    await broker.apply(DestroyGroup(KEY, "g"))
    early = news.broadcast()
    await broker.apply(CreateGroup(KEY, "g", "0"))
    news.acknowledge()
    await broker.janitor(spec("g", broadcast=True))
    assert news.states(early) == ["acknowledged"]


async def test_a_group_that_comes_back_at_its_checkpoint_keeps_what_it_acknowledged(
    broker: Broker, news: News
) -> None:
    one = news.broadcast()
    news.acknowledge()
    await broker.janitor(spec("g", broadcast=True))
    news.admin.xgroup_destroy(KEY, "g")
    assert news.states(one) == ["missing"]
    await broker.apply(CreateGroup(KEY, "g", str(news.admin.hget(KEYS.meta, "checkpoint:g"))))
    assert news.states(one) == ["acknowledged"]


async def test_what_was_given_up_too_long_ago_was_not_acknowledged(broker: Broker, news: News) -> None:
    old = news.earlier(2 * HOUR)
    news.give_up()
    recent = news.broadcast()
    news.acknowledge()
    for _ in range(3):
        await broker.janitor(spec("g", broadcast=True))
        assert news.states(old, recent)[0] in {"dead", "missing"}
    assert news.states(old, recent) == ["missing", "acknowledged"]
    assert news.admin.hgetall(KEYS.parked("g")) == {"since": old}


async def test_what_was_given_up_is_known_for_a_minute_even_without_history(
    broker: Broker, news: News
) -> None:
    one = news.broadcast()
    news.give_up()
    for _ in range(5):
        news.broadcast()
        news.acknowledge()
        await broker.janitor(spec("g", broadcast=True, min_age=0))
    assert news.states(one) == ["dead"]


async def test_what_was_acknowledged_is_known_when_the_stream_was_deleted(broker: Broker, news: News) -> None:
    one = news.broadcast()
    news.acknowledge()
    await broker.janitor(spec("g", broadcast=True))
    news.admin.delete(KEY)
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "g", str(news.admin.hget(KEYS.meta, "checkpoint:g"))))
    assert news.states(one) == ["acknowledged"]
    later = news.broadcast()
    news.acknowledge()
    await broker.janitor(spec("g", broadcast=True))
    assert news.states(one, later) == ["acknowledged", "acknowledged"]
