"""Whose lease has run out after a silence or a leap of the clock: for sweeps, and for the janitor."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentstream.protocol import commands, library
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.entry import Source
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import Gone
from histories.clock import LeapingClock
from support.entries import HOUR, KEY, fill, left, now, spec
from support.servers import Build, Server, builds
from support.waiting import until

LEASE = 10_000
INTERVAL = 2_000
# of ids: each entry in a millisecond of its own, long ago
_MS = itertools.count(1_000_000)
POLICY = Consumes("tasks", KEY, "g", lease=LEASE)
# lets time pass: the server's clock cannot be set, but all that it is compared with can be made older
_PASS = """
local now = redis.call('TIME')[1] * 1000
for _, p in ipairs(redis.call('XPENDING', KEYS[1], 'g', '-', '+', 1000)) do
  local older = p[3] + ARGV[1]
  if p[3] < now / 2 then redis.call('XCLAIM', KEYS[1], 'g', p[2], 0, p[1], 'IDLE', older, 'JUSTID') end
end
local known = redis.call('HGET', KEYS[2], 'sweep:heard') or '0 0 0 0'
local heard, silent, ended, silences = string.match(known, '(%d+) (%d+) (%d+) (%d+)')
heard, ended = string.format('%.0f', heard - ARGV[1]), string.format('%.0f', math.max(ended - ARGV[1], 0))
local older = heard .. ' ' .. silent .. ' ' .. ended .. ' ' .. silences
if known ~= '0 0 0 0' then redis.call('HSET', KEYS[2], 'sweep:heard', older) end
redis.call('HINCRBY', KEYS[2], 'sweep:due', -ARGV[1])
"""


@dataclass
class Held:
    """An entry that a consumer holds."""

    id: str
    counter: int = 1
    source: Source = field(default_factory=lambda: Source(KEY, retry=False))
    after: str | None = None


@dataclass
class Consumer:
    """A consumer of the group `g`."""

    admin: redis.Redis
    name: str
    holds: list[Held] = field(default_factory=list)

    def _call(self, command: commands.Command) -> Any:
        return self.admin.execute_command(*command)

    @property
    def calls(self) -> GroupCalls:
        return GroupCalls(POLICY, self.name)

    def read(self, count: int = 1) -> Consumer:
        """Takes new entries."""
        for _ in range(count):
            self.admin.xadd(KEY, {"m": "x"}, id=f"{next(_MS)}-0")
        ((_, entries),) = self.admin.xreadgroup("g", self.name, {KEY: ">"}, count=count)  # type: ignore[misc]
        self.holds += [Held(entry) for entry, _ in entries]
        return self

    def renew(self) -> list[int]:
        """Renews what it holds. Returns the codes."""
        codes: list[int] = self._call(self.calls.renew(Source(KEY, retry=False), LEASE, self.holds))
        return codes

    def sweep(self, count: int = 100) -> list[str]:
        """Returns the ids of what it claims."""
        return self.sweep_and_wait(count)[0]

    def sweep_and_wait(self, count: int = 100) -> tuple[list[str], int]:
        """Returns the ids of what it claims, and the ms until its next sweep."""
        _, found, _, wait = self._call(self.calls.sweep(LEASE, INTERVAL, count, now=True))
        return [entry for entry, *_ in found], wait

    def hand_back(self) -> None:
        """Hands back what it holds."""
        codes = self._call(self.calls.release(Source(KEY, retry=False), "delivered", self.holds))
        assert set(codes) == {DONE}


@dataclass
class Group:
    """The group `g` on a server."""

    admin: redis.Redis

    def __call__(self, name: str) -> Consumer:
        """A consumer of it."""
        return Consumer(self.admin, f"{name}.1")

    def passes(self, ms: float) -> None:
        """Lets so many ms pass."""
        self.admin.eval(_PASS, 2, KEY, f"{KEY}:stats:g", round(ms))

    def empty(self) -> None:
        """Nothing is pending, and nobody was ever heard."""
        self.admin.delete(f"{KEY}:stats:g")
        if ids := left(self.admin):
            self.admin.xack(KEY, "g", *ids)


@pytest.fixture
def group(stream: redis.Redis) -> Group:
    return Group(stream)


def test_after_an_outage_a_newcomer_takes_nothing_from_who_lives(group: Group) -> None:
    live = group("live").read(10)
    live.renew()
    group.passes(25_000)
    newcomer = group("newcomer")
    assert newcomer.sweep() == []
    group.passes(1_000)
    assert live.renew() == [DONE] * 10
    for _ in range(10):
        group.passes(2_500)
        live.renew()
        assert newcomer.sweep() == []


@pytest.mark.parametrize("away", [4_600, 25_000, 3 * 86_400_000], ids=["half a lease", "25 s", "three days"])
def test_what_died_meanwhile_is_claimed_half_a_lease_later(group: Group, away: int) -> None:
    dead = group("dead").read(10)
    dead.renew()
    group.passes(away)
    newcomer = group("newcomer")
    found, wait = newcomer.sweep_and_wait()
    assert (found, 0 < wait <= 2_500) == ([], True)
    waited = 0
    while not found:
        group.passes(wait)
        waited += wait
        found, wait = newcomer.sweep_and_wait()
    assert found == [held.id for held in dead.holds]
    expected = max(LEASE / 2, LEASE - away)
    assert expected - 100 <= waited <= expected + 2_500


def test_a_dead_consumer_of_a_group_that_others_consume_is_claimed_after_its_lease(group: Group) -> None:
    other, dead = group("other"), group("dead")
    other.sweep()
    dead.read(3)
    at, found = 0, []
    while not found:
        _, wait = (), other.sweep_and_wait(0)[1]
        found, wait = other.sweep_and_wait()
        at += wait
        group.passes(wait)
    assert found == [held.id for held in dead.holds]
    assert LEASE < at <= LEASE + 2_500 + wait


@pytest.mark.parametrize("away", [0, 25_000, 3 * 86_400_000])
def test_what_is_nobodys_is_claimed_at_once(group: Group, away: int) -> None:
    gone = group("gone").read(3)
    gone.renew()
    gone.hand_back()
    group.passes(away)
    assert group("newcomer").sweep() == [held.id for held in gone.holds]


def test_where_everybody_is_slow_leases_run_out_all_the_same(group: Group) -> None:
    dead, slow = group("dead").read(1), group("slow")
    for after in (4_600, 4_900, 5_000, 9_000, 20_000):
        # so it was for long
        for _ in range(30):
            slow.sweep(0)
            dead.renew()
            group.passes(after)
        dead.renew()
        waited, found = 0, []
        while not found:
            group.passes(after)
            waited += after
            found = slow.sweep()
        assert waited <= 2 * LEASE + 2 * after
        dead.admin.xclaim(KEY, "g", dead.name, 0, found, justid=True)


def test_a_clock_that_is_set_back_hides_no_silence_and_makes_none(group: Group) -> None:
    live = group("live").read(1)
    live.renew()
    other = group("other")
    assert other.sweep() == []
    group.passes(3_600_000)
    assert other.sweep() == []
    live.renew()
    group.passes(-3_600_000)
    live.renew()
    assert other.sweep() == []
    for _ in range(3):
        group.passes(2_500)
        other.sweep()
    group.passes(2_600)
    assert other.sweep() == [held.id for held in live.holds]


def test_what_is_done_about_a_clock_that_was_set_back_ends(group: Group) -> None:
    live = group("live")
    fill(group.admin, 1200)
    group.admin.xreadgroup("g", live.name, {KEY: ">"})

    def wait() -> int:
        return int(group.admin.execute_command(*live.calls.sweep(HOUR, INTERVAL, 10, now=False))[3])

    assert wait() > 1
    # less than what lets time be noted again
    group.passes(-HOUR / 32)
    assert any(wait() > 1 for _ in range(5))


@pytest.mark.skipif(not LeapingClock.available(), reason="there is no C compiler")
@pytest.mark.parametrize("build", builds(), ids=lambda build: build.name)
@pytest.mark.parametrize("retry", [False, True], ids=["", "retries"])
async def test_what_died_while_the_clock_was_ahead_is_claimed_soon_after_it_was_set_back(
    tmp_path: Path, build: Build, *, retry: bool
) -> None:
    clock = LeapingClock(tmp_path)
    server = Server(clock.on(build), tmp_path)
    server.start()
    try:
        with server.admin() as admin:
            admin.function_load(library.source())
            admin.execute_command(*commands.create_stream(KEY, {"name": "tasks"}))
            admin.execute_command(*commands.create_group(KEY, "g", "0"))
            key = f"{KEY}:retry:g" if retry else KEY
            clock.leap(HOUR / 1000)
            dead, live = Consumer(admin, "dead.1"), Consumer(admin, "live.1")
            await until(lambda: now(admin) > (time.time() + 3_000) * 1000)
            # more than one call looks at
            ids = fill(admin, 1200, key=key)
            admin.xreadgroup("g", dead.name, {key: ">"})
            dead.sweep()
            clock.leap(-HOUR / 1000)
            await until(lambda: now(admin) < (time.time() + 1_000) * 1000)
            live.sweep()
            found: set[str] = set()
            for _ in range(9):
                before = now(admin)
                clock.leap(2)
                await until(lambda before=before: now(admin) >= before + 1_500)  # type: ignore[misc]
                for _ in range(4):
                    _, *both, _ = admin.execute_command(*live.calls.sweep(LEASE, INTERVAL, 1000, now=True))
                    found |= {entry for entries in both for entry, *_ in entries}
            assert found == set(ids)
    finally:
        server.kill()


@st.composite
def outages(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Times between which the server is away, in leases."""
    times, at = [], 0.0
    for _ in range(draw(st.integers(0, 3))):
        begin = at + draw(st.floats(0.1, 2))
        at = begin + draw(st.floats(0.05, 3))
        times.append((begin, at))
    return times


@dataclass
class Course:
    """What happens, and when, in leases."""

    outages: list[tuple[float, float]]
    comes: float
    dies: float
    renews: float

    def is_up(self, now: float) -> bool:
        return not any(begin <= now < back for begin, back in self.outages)

    @property
    def back(self) -> float:
        return max((back for _, back in self.outages), default=0.0)


@settings(max_examples=30)
@example(Course([(1.90625, 2.96875), (3.09375, 4.71875)], comes=0.0, dies=0.0, renews=0.0625))
@example(Course([(1.0, 3.5)], comes=3.5, dies=9.0, renews=0.0))
@example(Course([(0.5, 1.0), (1.1, 1.6), (1.7, 2.2)], comes=0.0, dies=1.05, renews=0.32))
@example(Course([(1.0, 1.44)], comes=1.0, dies=0.4, renews=0.33))
@given(st.builds(Course, outages(), st.floats(0, 6), st.floats(0, 6), st.floats(0, 1 / 3)))
def test_who_renews_whenever_that_is_possible_is_never_taken_for_dead(group: Group, course: Course) -> None:
    """Two hold an entry; one dies. Another one comes, and sweeps when it may."""
    group.empty()
    live, dead, newcomer = group("live").read(), group("dead").read(), group("newcomer")
    renews = {live.name: course.renews, dead.name: course.renews / 2}
    sweeps = {live.name: 0.0, dead.name: 0.0, newcomer.name: course.comes}
    recovered: list[float] = []
    # a little early rather than a step late, as the steps are not exact
    now, step, ends = 1e-6, 0.05, max(course.back, course.dies, course.comes) + 3.0
    while now < ends:
        is_up = course.is_up(now)
        for who in (live, newcomer) if now >= course.dies else (live, dead, newcomer):
            if who.holds and now >= renews[who.name]:
                renews[who.name] = now + (1 / 3 if is_up else 1 / 10)
                assert not is_up or who.renew() == [DONE], f"{who.name} lost its lease at {now}"
            if now >= sweeps[who.name]:
                found, wait = who.sweep_and_wait() if is_up else ([], LEASE / 4)
                sweeps[who.name] = now + wait / LEASE
                assert live.holds[0].id not in found, f"{who.name} took what is held at {now}"
                recovered += [now] * (dead.holds[0].id in found)
        now += step
        group.passes(step * LEASE)
    assert recovered
    assert course.dies <= recovered[0]
    # after a lease, or half of one after the last silence
    heard = max(course.dies + 1.0, course.back + 0.5)
    assert recovered[0] <= heard + 0.6


async def test_what_was_handed_back_or_freed_never_expires(broker: Broker, group: Group) -> None:
    full = spec("g", max_length=1, min_age=0, lease=LEASE)
    gone, dead = group("gone").read(10), group("dead").read(10)
    gone.hand_back()
    assert await broker.release_pod(KEY, "g", Gone("dead")) == 10
    for later in (12_000, HOUR, 72 * HOUR):
        group.passes(later)
        report = await broker.janitor(full)
        assert (report.expired, report.refusing) == (0, True)
    assert len(group("newcomer").sweep()) == 20
    assert dead.renew() == [-1] * 10


@pytest.mark.parametrize("ahead", [12_000, HOUR, 72 * HOUR])
async def test_what_a_live_consumer_has_in_hand_does_not_expire_when_the_clock_leaps(
    broker: Broker, group: Group, ahead: int
) -> None:
    live = group("live").read(10)
    live.renew()
    group.passes(ahead)
    full = spec("g", max_length=1, min_age=0, lease=LEASE)
    assert (await broker.janitor(full)).expired == 0
    assert live.renew() == [DONE] * 10
    group.passes(3_000)
    assert (await broker.janitor(full)).expired == 0


async def test_what_a_holder_let_lapse_while_others_were_heard_expires(broker: Broker, group: Group) -> None:
    busy, dead = group("busy").read(), group("dead").read(3)
    busy.renew()
    full = spec("g", max_length=1, min_age=0, lease=LEASE)
    for _ in range(3):
        group.passes(2_500)
        assert (await broker.janitor(full)).expired == 0
        busy.renew()
    group.passes(2_600)
    assert (await broker.janitor(full)).expired == 3
    assert busy.renew() == [DONE]
    letters = [fields["origin"] for _, fields in group.admin.xrange(f"{KEY}:dlq:g")]
    assert letters == [held.id for held in dead.holds]
