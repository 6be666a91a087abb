"""Retries that were delayed while the clock was ahead wait for no longer than they were to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from support.entries import HOUR, KEY, Pending, now, read, spec

CALLS = GroupCalls(Consumes("tasks", KEY, "g", lease=10_000), "c")
DELAY, STATS, RETRY = f"{KEY}:delay:g", f"{KEY}:stats:g", f"{KEY}:retry:g"
DAY = 24 * HOUR
# as if the clock had been so much ahead when these were delayed, or is set back since
_SET_BACK = """
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do redis.call('ZADD', KEYS[1], string.format('%.0f', all[i + 1] + ARGV[1]), all[i]) end
redis.call('HINCRBY', KEYS[2], 'sweep:delayed', ARGV[1])
"""
# for how much longer each waits than it was to
_LATE = """
local time, late = redis.call('TIME'), {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  late[#late + 1] = all[i + 1] - time[1] * 1000 - math.floor(time[2] / 1000) - cmsgpack.unpack(all[i])[4]
end
return late
"""


@dataclass
class Retries:
    """The delayed retries of the group `g`."""

    admin: redis.Redis

    def delay(self, *delays: int) -> None:
        """Has one more entry delivered again after each of these, in ms."""
        for _ in delays:
            self.admin.xadd(KEY, {"m": "x"})
        for entry, delay in zip(read(self.admin), delays, strict=True):
            command = CALLS.retry(Pending(entry), delay, 1, "Failed", "boom")
            assert self.admin.execute_command(*command) == DONE

    def set_back(self, ms: int) -> None:
        """Sets the clock back by so much."""
        self.admin.eval(_SET_BACK, 2, DELAY, STATS, ms)

    def sweep(self) -> int:
        """Returns the ms until the next sweep."""
        *_, wait = self.admin.execute_command(*CALLS.sweep(10_000, 2_000, 1, now=True))
        return int(wait)

    def sweep_for(self, calls: int) -> None:
        """Sweeps until that does not want to go on at once."""
        for _ in range(calls):
            if self.sweep() > 1:
                return
        pytest.fail("sweeping does not end")

    def late(self) -> list[int]:
        """For how many ms longer than it was to each waits."""
        late: Any = self.admin.eval(_LATE, 1, DELAY)
        return list(late)

    def clear(self) -> None:
        self.admin.delete(DELAY, STATS)
        self.admin.xtrim(RETRY, 0)


@pytest.fixture
def retries(stream: redis.Redis) -> Retries:
    return Retries(stream)


def test_a_clock_that_was_an_hour_ahead_delays_nothing_by_an_hour(retries: Retries) -> None:
    retries.delay(60_000, DAY)
    retries.set_back(HOUR)
    assert min(retries.late()) > HOUR - 60_000
    retries.sweep_for(2)
    assert max(retries.late()) <= 0
    # what was to wait for long still does
    assert min(retries.late()) > -60_000


async def test_they_are_not_late_either_where_there_are_no_consumers(
    broker: Broker, retries: Retries
) -> None:
    retries.delay(*([60_000] * 700))
    retries.set_back(HOUR)
    await broker.janitor(spec("g"))
    assert max(retries.late()) <= 0


def test_what_is_delayed_later_is_left_alone(retries: Retries) -> None:
    retries.delay(60_000)
    retries.set_back(HOUR)
    retries.sweep_for(2)
    retries.delay(60_000)
    before = retries.late()
    retries.sweep_for(2)
    assert max(retries.late()) <= max(before)
    assert retries.admin.hget(STATS, "sweep:mend") == "0"


def test_of_many_each_sweep_looks_at_a_part(retries: Retries) -> None:
    retries.delay(*([DAY] * 600 + [HOUR] * 1200))
    retries.set_back(2 * DAY)
    retries.sweep()
    retries.sweep_for(10)
    assert max(retries.late()) <= 0
    assert retries.admin.zcard(DELAY) == 1800


def test_a_clock_that_is_set_back_again_meanwhile_delays_none(retries: Retries) -> None:
    retries.delay(DAY)
    retries.set_back(HOUR)
    # a sweep has found that the last one was right, and not looked at others yet
    ahead = now(retries.admin) + HOUR
    retries.admin.hset(STATS, mapping={"sweep:mend": 1, "sweep:heard": f"{ahead} 0 0 0"})
    retries.sweep_for(10)
    assert max(retries.late()) <= 0


@settings(max_examples=30)
@example(delays=[5_000, 5_000, DAY, DAY], ahead=HOUR, later=[5_000], earlier=[DAY])
@given(
    delays=st.lists(st.integers(1_000, DAY), max_size=20),
    ahead=st.integers(2_000, 10 * DAY),
    later=st.lists(st.integers(1_000, DAY), max_size=5),
    earlier=st.lists(st.integers(1_000, DAY), max_size=5),
)
def test_none_waits_longer_than_it_was_to(
    retries: Retries, delays: list[int], ahead: int, later: list[int], earlier: list[int]
) -> None:
    retries.clear()
    retries.delay(*delays)
    retries.set_back(ahead)
    retries.delay(*later, *earlier)
    retries.sweep_for(5)
    assert max(retries.late(), default=0) <= 0
    moved = retries.admin.xlen(RETRY)
    assert retries.admin.zcard(DELAY) + moved == len(delays) + len(later) + len(earlier)
