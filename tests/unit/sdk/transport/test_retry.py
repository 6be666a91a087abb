"""Delays grow by the policy, spread, and have a limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentstream.consuming.settling import retry_delay
from agentstream.protocol.routes import Consumes
from agentstream.transport.retry import Backoff

POLICY = Consumes("tasks", "{t}", "coder", backoff_initial=1_000, backoff_factor=2.0, backoff_max=5_000)


def test_delays_follow_the_policy() -> None:
    assert [retry_delay(POLICY, attempt, 0) for attempt in range(1, 6)] == [1_000, 2_000, 4_000, 5_000, 5_000]


@given(st.integers(1, 10**12), st.floats(0, 1))
def test_jitter_only_adds_and_at_most_a_quarter(attempt: int, jitter: float) -> None:
    delay = retry_delay(POLICY, attempt, 0)
    assert delay <= retry_delay(POLICY, attempt, jitter) <= delay * 1.25


def test_pauses_double_up_to_the_longest_and_start_anew_after_success() -> None:
    backoff = Backoff(1, 5, lambda: 1.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_pauses_are_spread_over_their_second_half() -> None:
    assert Backoff(1, 5, lambda: 0.0).next() == 0.5
