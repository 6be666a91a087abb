"""The verbs with arguments that make no sense: refused in one line, and the message stays the handler's."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import math
from typing import Any

import pytest

from agentstream import sync
from agentstream.consuming.delivery import Delivery
from agentstream.errors import InvalidMessage, Retry
from agentstream.protocol.routes import Consumes
from support.endings import Unprintable
from support.topology import Topology, following
from support.waiting import until

NO_TIMES: dict[str, Any] = {
    "a text": "soon",
    "a text with a number": "5",
    "bytes": b"5",
    "no number": math.nan,
    "for ever": math.inf,
    "since ever": -math.inf,
    "too long": 1e300,
    "too long for a float": 10**400,
    "a span": dt.timedelta(seconds=5),
    "a list": [1],
    "an object": object(),
    "what cannot be printed": Unprintable(),
}
TIMES: dict[str, Any] = {"zero": 0, "before": -5, "a decimal": decimal.Decimal("0.001"), "true": True}
REASONS: dict[str, Any] = {
    "nothing": None,
    "empty": "",
    "a number": 5,
    "bytes": b"\xff",
    "no Unicode": "\ud800",
    "lines": "a\r\nb\0c",
    "long": "x" * 1_000_000,
    "an error": ValueError("no"),
    "what cannot be printed": Unprintable(),
}
NO_ANSWERS: dict[str, Any] = {
    "nothing": None,
    "true": True,
    "a list": [1],
    "a dict with an object": {"a": object()},
    "a dict with no number": {"a": math.nan},
}


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`, with a deadline far away; one message waits."""
    policy = await topology.group("tasks", "coder", lease=60_000, deadline=3_600_000, max_deliveries=9)
    async with topology.agent("planner") as planner:
        await planner.send_message(stream="tasks", type="task_request", payload={})
    return policy


async def refuse(delivery: Delivery) -> None:
    """Gives every verb everything that it cannot take."""
    deadline = delivery.deadline
    for value in NO_TIMES.values():
        with pytest.raises(ValueError, match=r"^after= must be a number of seconds, not .+$"):
            await delivery.retry(after=value)
        with pytest.raises(ValueError, match=r"^after= must be a number of seconds, not .+$"):
            Retry(after=value)
        with pytest.raises(ValueError, match=r"^ttl= must be a number of seconds, not .+$"):
            delivery.once("key", ttl=value)
    for value in (*NO_TIMES.values(), None):
        with pytest.raises(ValueError, match=r"^seconds= must be a number of seconds, not .+$"):
            await delivery.extend(value)
    for key, ttl in (("", 1.0), (None, 1.0), (5, 1.0), ("key", 0), ("key", -1)):
        with pytest.raises(ValueError, match="needs a text as its key"):
            delivery.once(key, ttl=ttl)  # type: ignore[arg-type]
    for value in NO_ANSWERS.values():
        with pytest.raises(InvalidMessage):
            await delivery.reply(value)
    assert (delivery.deadline, delivery.settled, delivery.held) == (deadline, False, True)


async def test_what_no_verb_takes_changes_nothing(topology: Topology, group: Consumes) -> None:
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            await refuse(delivery)
        assert delivery.outcome == "ack"
        assert await topology.settled(group, 1)


async def test_what_no_verb_takes_changes_nothing_in_a_thread(topology: Topology, group: Consumes) -> None:
    def work() -> None:
        with sync.Agent.connect(topology.settings("coder")) as coder:
            with next(coder.stream_consume("tasks")) as delivery:
                for value in NO_TIMES.values():
                    for call in (delivery.extend, delivery.retry):
                        with pytest.raises(ValueError, match="must be a number of seconds"):
                            call(value)
                for value in NO_ANSWERS.values():
                    with pytest.raises(InvalidMessage):
                        delivery.reply(value)
                assert not delivery.settled
            assert delivery.outcome == "ack"

    await asyncio.to_thread(work)
    assert await topology.settled(group, 1)


@pytest.mark.parametrize("after", TIMES.values(), ids=TIMES)
async def test_times_of_all_kinds_are_taken(topology: Topology, group: Consumes, after: Any) -> None:
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        assert await first.extend(60 + abs(after))
        assert await first.retry(after=after)
        second = await following(deliveries)
        assert second.attempt == 2
        async with second:
            raise Retry(after=after)
        third = await following(deliveries)
        assert third.attempt == 3
        assert await third.ack()
        assert await topology.settled(group, 1)


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS)
async def test_any_reason_is_taken_and_cut_short(topology: Topology, group: Consumes, reason: Any) -> None:
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await (await following(deliveries)).retry(after=0, reason=reason)
        assert await (await following(deliveries)).dead_letter(reason)
        await until(lambda: topology.settled(group, 1))
    (record,) = await topology.dead_letters(group)
    assert len(record["reason"]) <= 3_000
    assert record["attempts"] == b"2"
