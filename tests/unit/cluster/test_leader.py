"""Who leads, in virtual time: one at a time, whatever becomes of requests, and always somebody in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.leader import DURATION, Leader
from support.clock import run_virtually
from unit.cluster.leases import NAME, NAMESPACE, Api, Leases, Way

Json = dict[str, Any]
# a candidate looks every 2 s, and gives up a request after 3 s
LOOK = 2.0 + 3.0


class Candidate:
    """A process that would lead.

    Attributes:
        api: its way to the API server.
        leader: the candidate.
        led: is set when it leads.
        lost: is set when it does not any more.
        process: runs it.
    """

    def __init__(self, leases: Leases, identity: str = "a") -> None:
        self.api = Api(leases)
        api: Any = self.api
        self.leader = Leader(api, NAMESPACE, NAME, identity)
        self.led, self.lost = asyncio.Event(), asyncio.Event()
        self.process = asyncio.create_task(self._run(), name=identity)

    async def _run(self) -> None:
        async with self.leader.leading() as held:
            self.led.set()
            await asyncio.wait({held})
            self.lost.set()

    async def stop(self) -> None:
        """Ends in order."""
        self.process.cancel()
        await asyncio.gather(self.process, return_exceptions=True)

    async def kill(self) -> None:
        """Is no more: nothing that it does at the end arrives."""
        self.api.way = Way.HANGS
        await self.stop()


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs a test with a clock of its own."""

    def run() -> None:
        async def main() -> None:
            try:
                await test()
            finally:
                left = asyncio.all_tasks() - {asyncio.current_task()}
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

        run_virtually(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


async def within(seconds: float, event: asyncio.Event) -> float:
    """Waits for an event. Returns how long it took."""
    began = now()
    async with asyncio.timeout(seconds):
        await event.wait()
    return now() - began


@in_virtual_time
async def test_who_comes_first_leads_at_once() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    assert await within(0.1, candidate.led) == 0
    assert candidate.leader.leads
    assert leases.spec["holderIdentity"] == "a"
    assert leases.spec["leaseDurationSeconds"] == DURATION


@in_virtual_time
async def test_a_lease_is_renewed_and_remembers_since_when_it_is_held() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    await asyncio.sleep(59)
    assert candidate.leader.leads
    assert candidate.api.writes == 30
    assert leases.spec["acquireTime"] < leases.spec["renewTime"]


@in_virtual_time
async def test_a_second_candidate_stands_by_as_long_as_the_first_one_leads() -> None:
    leases = Leases()
    first = Candidate(leases)
    await within(0.1, first.led)
    second = Candidate(leases, "b")
    await asyncio.sleep(600)
    assert (first.leader.leads, second.leader.leads) == (True, False)
    assert second.api.writes == 0


@in_virtual_time
async def test_when_the_leader_is_killed_another_one_takes_over() -> None:
    leases = Leases()
    first = Candidate(leases)
    await within(0.1, first.led)
    second = Candidate(leases, "b")
    await asyncio.sleep(10)
    killed_at = now()
    await first.kill()
    await within(LOOK + DURATION, second.led)
    assert DURATION - 2 <= now() - killed_at <= DURATION + 2
    assert leases.spec["holderIdentity"] == "b"


@in_virtual_time
async def test_a_leader_that_ends_in_order_gives_the_lease_back() -> None:
    leases = Leases()
    first = Candidate(leases)
    await within(0.1, first.led)
    second = Candidate(leases, "b")
    await asyncio.sleep(10)
    await first.stop()
    assert not first.leader.leads
    await within(2.1, second.led)


@in_virtual_time
async def test_the_lease_is_given_back_although_its_latest_renewal_was_cut_short() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    before = leases.spec["renewTime"]
    candidate.api.way = Way.REPLY_HANGS
    while leases.spec["renewTime"] == before:  # noqa: ASYNC110 - time passes only here
        await asyncio.sleep(0.1)
    # the renewal is done, and its answer not there yet
    candidate.api.way = Way.OPEN
    await candidate.stop()
    assert leases.spec["holderIdentity"] == ""


@in_virtual_time
async def test_a_lease_that_another_one_has_taken_is_not_given_back() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    assert leases.lease is not None
    leases.write({**leases.lease, "spec": {**leases.spec, "holderIdentity": "b"}})
    await candidate.stop()
    assert leases.spec["holderIdentity"] == "b"


@pytest.mark.parametrize("way", [Way.AWAY, Way.HANGS, Way.REPLY_LOST])
def test_a_leader_that_cannot_give_the_lease_back_ends_all_the_same(way: Way) -> None:
    async def main() -> None:
        candidate = Candidate(Leases())
        await within(0.1, candidate.led)
        candidate.api.way = way
        async with asyncio.timeout(3.1):
            await candidate.stop()

    run_virtually(main())


@in_virtual_time
async def test_a_lease_that_nobody_made_again_is_not_given_back() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    leases.lease = None
    await candidate.stop()
    assert leases.lease is None


@in_virtual_time
async def test_after_a_restart_in_the_same_pod_it_goes_on_at_once() -> None:
    leases = Leases(holderIdentity="a", acquireTime="before", renewTime="a moment ago")
    candidate = Candidate(leases)
    assert await within(0.1, candidate.led) == 0
    assert leases.spec["acquireTime"] == "before"


@pytest.mark.parametrize("spec", [{"holderIdentity": ""}, {"renewTime": "long ago"}])
def test_a_lease_that_nobody_holds_is_taken_at_once(spec: Json) -> None:
    async def main() -> None:
        candidate = Candidate(Leases(**spec))
        assert await within(0.1, candidate.led) == 0
        await candidate.stop()

    run_virtually(main())


@in_virtual_time
async def test_a_lease_that_was_held_before_is_not_believed_to_be_free_by_its_time() -> None:
    # clocks of two machines may differ by any amount
    leases = Leases(holderIdentity="b", renewTime="1970-01-01T00:00:00.000000Z")
    candidate = Candidate(leases)
    assert await within(DURATION + 2, candidate.led) >= DURATION


@in_virtual_time
async def test_a_change_of_the_lease_by_others_costs_nothing() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    for _ in range(10):
        await asyncio.sleep(3)
        assert leases.lease is not None
        leases.write(leases.lease)
    assert not candidate.lost.is_set()


@in_virtual_time
async def test_a_lease_that_was_deleted_is_made_again() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    leases.lease = None
    await asyncio.sleep(5)
    assert candidate.leader.leads
    assert leases.spec["holderIdentity"] == "a"


@in_virtual_time
async def test_one_of_two_that_make_the_lease_at_once_leads() -> None:
    leases = Leases()
    candidates = [Candidate(leases, name) for name in "ab"]
    await asyncio.sleep(30)
    assert sorted(candidate.leader.leads for candidate in candidates) == [False, True]


@pytest.mark.parametrize("way", [way for way in Way if way not in {Way.OPEN, Way.SLOW}])
def test_who_cannot_renew_the_lease_has_lost_it_before_anybody_else_may_have_it(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        leases = Leases()
        first = Candidate(leases)
        await within(0.1, first.led)
        second = Candidate(leases, "b")
        await asyncio.sleep(11)
        if way is Way.REPLY_LOST:
            # what is written is not worth anything if nobody tells that it was
            first.api.leases = Leases(holderIdentity="c")
        first.api.way = way
        await within(DURATION, first.lost)
        assert not first.leader.leads
        await first.process
        if way in {Way.AWAY, Way.HANGS}:
            assert not second.leader.leads
            await within(DURATION + 2, second.led)
        await second.stop()

    run_virtually(main())
    assert f"could not renew the Lease {NAME}" in caplog.text


@in_virtual_time
async def test_a_server_that_is_away_for_a_moment_costs_nothing() -> None:
    leases = Leases()
    candidate = Candidate(leases)
    await within(0.1, candidate.led)
    for way in (Way.AWAY, Way.REPLY_LOST, Way.HANGS):
        candidate.api.way = way
        await asyncio.sleep(3)
        candidate.api.way = Way.OPEN
        await asyncio.sleep(3)
    assert not candidate.lost.is_set()


@in_virtual_time
async def test_a_candidate_waits_for_a_server_that_is_away() -> None:
    candidate = Candidate(Leases())
    candidate.api.way = Way.AWAY
    await asyncio.sleep(60)
    candidate.api.way = Way.OPEN
    await within(2.1, candidate.led)


def test_why_there_is_no_lease_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        candidate = Candidate(Leases(holderIdentity=""))
        candidate.api.merge = refused
        for way in (Way.AWAY, Way.HANGS, Way.OPEN):
            candidate.api.way = way
            await asyncio.sleep(LOOK)
        assert not candidate.led.is_set()
        await candidate.stop()

    async def refused(*_: object) -> None:
        raise ApiError(403, "leases is forbidden")

    with caplog.at_level(logging.WARNING):
        run_virtually(main())
    for why in ("away", "no answer", "leases is forbidden"):
        assert f"the Lease {NAME}: {why}" in caplog.text


_ways = st.lists(st.tuples(st.sampled_from(Way), st.floats(0.1, 15)), max_size=8)


@given(_ways, _ways)
def test_never_do_two_lead_and_in_the_end_one_does(
    first: list[tuple[Way, float]], second: list[tuple[Way, float]]
) -> None:
    async def main() -> None:
        leases = Leases()
        candidates = [Candidate(leases, name) for name in "ab"]
        travels = [
            asyncio.create_task(travel(candidate, ways))
            for candidate, ways in zip(candidates, (first, second), strict=True)
        ]
        watching = asyncio.create_task(watch(candidates))
        await asyncio.gather(*travels)
        await asyncio.sleep(LOOK + DURATION + LOOK)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert [candidate.leader.leads for candidate in candidates].count(True) == 1 or all(
            candidate.lost.is_set() for candidate in candidates
        )
        for candidate in candidates:
            await candidate.stop()

    async def travel(candidate: Candidate, ways: list[tuple[Way, float]]) -> None:
        for way, seconds in ways:
            candidate.api.way = way
            await asyncio.sleep(seconds)
        candidate.api.way = Way.OPEN

    async def watch(candidates: list[Candidate]) -> None:
        while True:
            assert [candidate.leader.leads for candidate in candidates].count(True) <= 1
            await asyncio.sleep(0.05)

    run_virtually(main())
