"""When nobody may be taken for dead."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentstream.consuming import liveness as loop_lag
from agentstream.consuming.liveness import PERIOD, ClaimGuard, LoopLag

LEASE = 10.0
# of the server's clock, in ms, when the tests' own shows 0
START = 1_700_000_000_000


def clock(at: float, leap: float = 0.0) -> int:
    return START + round(1000 * (at + leap))


def asked(claim_guard: ClaimGuard, at: float, *, leap: float = 0.0, takes: float = 0.001) -> bool:
    """Asks the server. Returns whether it may take leases for run out."""
    limit = claim_guard.limit(at, LEASE)
    shown = clock(at + takes, leap)
    claim_guard.heard(limit, shown, asked=at, now=at + takes, lease=LEASE)
    return limit is None or shown <= limit


def test_who_has_just_come_takes_over_at_once_what_the_dead_held() -> None:
    assert ClaimGuard(0.0).limit(0.1, LEASE) is None


def test_who_had_to_wait_for_the_server_first_gives_the_others_time() -> None:
    claim_guard = ClaimGuard(0.0)
    assert not asked(claim_guard, 4.0)
    assert not asked(claim_guard, 4.0 + PERIOD * LEASE - 0.01)
    assert asked(claim_guard, 4.1 + PERIOD * LEASE)


def test_nothing_happens_and_leases_run_out_as_ever() -> None:
    claim_guard = ClaimGuard(0.0)
    assert all(asked(claim_guard, at) for at in (0.1, 2.6, 3.0, 5.4, 5.5, 8.0))


def test_a_silence_is_followed_by_half_a_lease_of_grace() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    claim_guard.interrupted()
    assert not asked(claim_guard, 9.0)
    assert not asked(claim_guard, 11.5)
    assert asked(claim_guard, 14.1)


def test_to_be_late_oneself_is_no_silence() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert all(asked(claim_guard, at) for at in (20.0, 45.0, 46.0, 80.0))


def test_grace_does_not_begin_anew_while_it_lasts() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    claim_guard.interrupted()
    asked(claim_guard, 9.0)
    # asked before its end, and answered after it
    assert not asked(claim_guard, 13.9, takes=0.3)
    assert asked(claim_guard, 14.3)


def test_an_answer_that_takes_too_long_is_a_silence() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert not asked(claim_guard, 2.0, takes=4.0)


def test_a_short_interruption_that_nobody_can_miss_a_lease_by_is_none() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    claim_guard.interrupted()
    assert asked(claim_guard, 2.5)


def test_an_interruption_in_a_long_pause_is_a_silence() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert asked(claim_guard, 9.0)
    claim_guard.interrupted()
    assert not asked(claim_guard, 17.0)


def test_a_clock_that_leaps_ahead_is_noticed_once() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert not asked(claim_guard, 2.5, leap=3600)
    assert asked(claim_guard, 8.0, leap=3600)


def test_a_clock_that_is_set_back_is_no_reason_to_wait() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert asked(claim_guard, 2.5, leap=-3600)
    assert asked(claim_guard, 5.0, leap=-3600)


def test_where_the_lease_is_longer_more_is_tolerated() -> None:
    claim_guard = ClaimGuard(0.0)
    asked(claim_guard, 0.1)
    assert claim_guard.limit(60.0, 300.0) >= clock(60.0)


@example(begins=1.0, away=10.5, backoff=12.0)
@given(begins=st.floats(1, 30), away=st.floats(0, 60), backoff=st.floats(0.05, 12))
def test_who_renews_whenever_that_is_possible_is_never_taken_for_dead(
    begins: float, away: float, backoff: float
) -> None:
    """A server that is away once; another consumer, who lives, has something to renew."""
    back, third = begins + away, LEASE / 3

    def renewed(now: float) -> float:
        # while renewing fails it is tried ten times per lease
        again = back + LEASE / 10
        return again + (now - again) // third * third if now >= again else min(now, begins) // third * third

    claim_guard, at, heard = ClaimGuard(0.0), 0.1, 0.1
    while at < back + 3 * LEASE:
        if not begins <= at < back:
            if heard < begins and away and at >= back:
                claim_guard.interrupted()
            may_claim = asked(claim_guard, at)
            assert not (may_claim and at - renewed(at) > LEASE)
            heard = at
        at += backoff


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def loop_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    by_hand = Clock()
    monkeypatch.setattr(loop_lag, "time", by_hand)
    return by_hand


def test_what_comes_while_the_loop_turns_came_now(loop_clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    loop_clock.now += 2.0
    assert beating.stalled_since() == 102.0


def test_what_comes_after_a_stop_may_have_come_at_its_beginning(loop_clock: Clock) -> None:
    beating = LoopLag(1.0)
    beating.reset()
    loop_clock.now += 2.1
    assert beating.stalled_since() == 100.0
    assert beating.stalled_since() == 100.0
    beating.reset()
    assert beating.stalled_since() == loop_clock.now


async def test_a_beat_that_comes_before_whoever_asks_hides_nothing(loop_clock: Clock) -> None:
    beating = LoopLag(0.001)
    beating.reset()
    loop_clock.now += 5.0
    task = asyncio.create_task(beating.watch())
    await asyncio.sleep(0)
    assert beating.stalled_since() == 100.0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
