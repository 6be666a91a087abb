"""Every transition of a hold, those that must not happen, and how long settling is tried again."""

from __future__ import annotations

import ast
import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

import agentstream
from agentstream.consuming.fetch import FetchSignals
from agentstream.consuming.hold import (
    BEGUN,
    CLAIMED,
    COUNTING,
    DELIVERED,
    LOST,
    SETTLED,
    SETTLING,
    Hold,
    HoldState,
    TransitionError,
)
from agentstream.consuming.leases import Leases
from agentstream.consuming.settling import Settler
from agentstream.errors import ConnectionLost
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.entry import Entry
from agentstream.protocol.routes import Consumes
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import Counters
from support.holds import MAIN, a_hold, settle

TRANSITIONS: dict[str, tuple[Callable[[Hold], None], dict[HoldState, HoldState]]] = {
    "count": (Hold.count, {CLAIMED: COUNTING}),
    "counted": (lambda hold: hold.counted(2, math.inf), {COUNTING: DELIVERED}),
    "begin": (Hold.begin, {DELIVERED: BEGUN}),
    "start_settling": (Hold.start_settling, {CLAIMED: SETTLING, DELIVERED: SETTLING, BEGUN: SETTLING}),
    "settle": (lambda hold: hold.settle(was_held=True), {SETTLING: SETTLED}),
    "lose": (Hold.lose, {CLAIMED: LOST, COUNTING: LOST, DELIVERED: LOST, BEGUN: LOST}),
}
CASES = [(name, state) for name in TRANSITIONS for state in HoldState]


@pytest.mark.parametrize(("name", "state"), CASES)
def test_each_transition_starts_in_its_states_only(name: str, state: HoldState) -> None:
    transition, states = TRANSITIONS[name]
    hold = a_hold(state=state)
    if state in states:
        transition(hold)
        assert hold.state is states[state]
        assert hold.renew_until == math.inf
        return
    before = (hold.counter, hold.was_held, hold.is_finished, hold.lease_until)
    with pytest.raises(TransitionError, match=f"entry 1-0 is {state} and cannot become"):
        transition(hold)
    assert hold.state is state
    assert before == (hold.counter, hold.was_held, hold.is_finished, hold.lease_until)
    # the server delivers it again
    assert hold.renew_until < time.monotonic()


@pytest.mark.parametrize("state", HoldState)
def test_renewing_extends_a_lease_in_any_state_and_never_shortens_it(state: HoldState) -> None:
    hold = Hold(Entry(MAIN, "1-0", "1-0", None), 1, state, 5.0)
    hold.renew(7.0)
    hold.renew(6.0)
    assert (hold.lease_until, hold.state) == (7.0, state)


def test_an_attempt_that_is_counted_changes_the_counter_and_the_lease() -> None:
    hold = a_hold(counter=2, state=CLAIMED)
    assert (hold.attempts, hold.next_attempt, hold.unsettled_attempts) == (2, 3, 2)
    hold.count()
    assert hold.is_busy
    hold.counted(3, 9.0)
    assert (hold.counter, hold.lease_until, hold.is_busy) == (3, 9.0, False)
    assert (hold.attempts, hold.next_attempt, hold.unsettled_attempts) == (3, 3, 2)


async def test_callers_hear_whether_it_was_held_when_it_is_settled() -> None:
    hold = a_hold(state=BEGUN)
    hold.start_settling()
    waiting = [asyncio.ensure_future(hold.settled()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    hold.settle(was_held=True, is_finished=True)
    assert await asyncio.gather(*waiting[1:], hold.settled()) == [True] * 3
    assert hold.is_finished


async def test_callers_hear_that_it_was_lost() -> None:
    hold = a_hold()
    waiting = asyncio.ensure_future(hold.settled())
    await asyncio.sleep(0)
    hold.lose()
    assert not await waiting
    assert not await hold.settled()


def test_it_is_finished_only_if_the_group_is_known_to_have_finished_it() -> None:
    hold = a_hold()
    settle(hold, is_finished=False)
    assert hold.was_held
    assert not hold.is_finished


def test_no_other_file_changes_a_hold() -> None:
    package = Path(agentstream.__file__).parent
    for room in ("consuming", "handlers"):
        for path in package.joinpath(room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and path.stem != "hold"
                ):
                    assert node.attr not in Hold.__slots__ or ast.unparse(node.value) == "self", (
                        f"{path}:{node.lineno}"
                    )


class Asleep:
    """Renews nothing."""

    def wake(self) -> None: ...

    def first_acquired(self, leases: Leases) -> None: ...


class Ended:
    """Keeps the holds that have ended."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []

    def holds_lost(self, holds: Sequence[Hold]) -> None: ...

    def holds_ended(self, holds: Sequence[Hold]) -> None:
        self.holds += holds


class Away:
    """A server that is away for some calls.

    Args:
        calls: how many.
    """

    def __init__(self, calls: int) -> None:
        self.left = calls

    async def call(self, *_: Any) -> list[int]:
        """Its answer."""
        if self.left:
            self.left -= 1
            raise ConnectionLost("away")
        return [DONE]


@pytest.mark.parametrize("patience", [None, 0.0])
async def test_what_gives_way_is_handed_back_whenever_the_server_is_there_again(
    patience: float | None,
) -> None:
    calls = GroupCalls(Consumes("tasks", "{t}", group="coder"), "pod.1")
    leases, ended = Leases(calls, 0.0, Asleep()), Ended()
    leases.listen(ended)
    counters, signals = Counters().group("tasks", "coder"), cast("FetchSignals", None)
    settler = Settler(Away(2).call, leases, counters, cast("Replies", None), signals)
    entry = a_hold()
    await settler.release(entry, patience=patience)
    assert ended.holds == [entry]
    assert entry.was_held is (patience is None)
