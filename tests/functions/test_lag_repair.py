"""The janitor tells the server what it does not know of itself, so that other tools see a right lag, too."""

from __future__ import annotations

import pytest
import redis

from agentstream_operator.broker.broker import Broker
from support.entries import KEY, fill, read, spec
from support.servers import Server


def lag(admin: redis.Redis, group: str = "g") -> int | None:
    """What the server itself says."""
    (found,) = (g for g in admin.xinfo_groups(KEY) if g["name"] == group)
    return found["lag"]


def set_read(admin: redis.Redis, last: str, number: int) -> None:
    admin.execute_command("XGROUP", "SETID", KEY, "g", last, "ENTRIESREAD", number)


async def test_the_lag_of_a_group_in_the_middle_becomes_known(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 120)
    stream.xgroup_setid(KEY, "g", ids[19])
    assert lag(stream) is None
    await broker.janitor(spec("g"))
    assert lag(stream) == 100
    assert len(read(stream, count=30)) == 30
    assert lag(stream) == 70


async def test_a_lag_of_which_everything_is_read_goes_away(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 100)
    read(stream)
    set_read(stream, ids[-1], 60)
    assert lag(stream) == 40
    await broker.janitor(spec("g"))
    assert lag(stream) == 0


async def test_what_was_trimmed_unread_is_no_lag(server: Server, broker: Broker, stream: redis.Redis) -> None:
    fill(stream, 100)
    read(stream, count=10)
    stream.xtrim(KEY, maxlen=50, approximate=False)
    await broker.janitor(spec("g"))
    assert lag(stream) == 50
    read(stream, count=5)
    assert lag(stream) == 45


async def test_what_is_delivered_stays_as_it_is(server: Server, broker: Broker, stream: redis.Redis) -> None:
    ids = fill(stream, 100)
    read(stream)
    set_read(stream, ids[-1], 60)
    before = stream.xpending_range(KEY, "g", "-", "+", 100)
    await broker.janitor(spec("g"))
    after = stream.xpending_range(KEY, "g", "-", "+", 100)
    assert [(p["message_id"], p["consumer"], p["times_delivered"]) for p in after] == [
        (p["message_id"], p["consumer"], p["times_delivered"]) for p in before
    ]
    (group,) = stream.xinfo_groups(KEY)
    assert (group["last-delivered-id"], group["pending"]) == (ids[-1], 100)


@pytest.mark.parametrize("deleted", [50, -1], ids=["in between", "at the end"])
async def test_past_what_was_deleted_ahead_the_server_cannot_count_and_is_left_alone(
    server: Server, broker: Broker, stream: redis.Redis, deleted: int
) -> None:
    ids = fill(stream, 100)
    read(stream, count=20)
    stream.xdel(KEY, ids[deleted])
    for _ in range(2):
        await broker.janitor(spec("g"))
        assert lag(stream) is None
    assert (await broker.observe(KEY, ("g",))).groups["g"].undelivered == 79


async def test_a_group_that_nobody_declared_is_left_alone(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 100)
    stream.xgroup_create(KEY, "theirs", ids[19])
    stream.xreadgroup("theirs", "c", {KEY: ">"}, count=1)
    before = lag(stream, "theirs")
    await broker.janitor(spec("g"))
    assert lag(stream, "theirs") == before


async def test_what_is_right_is_not_written_again(
    server: Server, broker: Broker, stream: redis.Redis
) -> None:
    ids = fill(stream, 120)
    stream.xgroup_setid(KEY, "g", ids[19])
    await broker.janitor(spec("g"))
    stream.config_resetstat()
    await broker.janitor(spec("g"))
    assert not any("setid" in command for command in stream.info("commandstats"))
