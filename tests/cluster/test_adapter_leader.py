"""Who leads, on a real API server, with a Lease that runs out soon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from agentstream_operator.cluster import leader as module
from agentstream_operator.cluster.leader import Leader
from cluster.adapter import Json, api_of
from cluster.team import Team
from support.waiting import until

NAME = "agentstream-main"


class Candidate:
    """A process that would lead.

    Attributes:
        leader: the candidate.
        lost: whether it led, and does not any more.
        process: runs it.
    """

    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self.lost = False
        self.process = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.leader.leading() as held:
            await asyncio.wait({held})
            self.lost = True

    async def leads(self) -> None:
        """Waits until it does."""
        await until(lambda: self.leader.leads)

    async def kill(self) -> None:
        """Ends without giving the Lease back."""

        async def nothing() -> None:
            pass

        self.leader._release = nothing  # type: ignore[method-assign]
        await self.stop()

    async def stop(self) -> None:
        """Ends in order."""
        self.process.cancel()
        await asyncio.gather(self.process, return_exceptions=True)


Stand = Callable[[str], Candidate]


@pytest.fixture
async def stand(own_team: Team, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    """Makes candidates, of which any one that is not renewed for three seconds has lost the Lease."""
    for name, seconds in (("DURATION", 3), ("_DEADLINE", 2.5), ("_EVERY", 0.1), ("_SOON", 0.05)):
        monkeypatch.setattr(module, name, seconds)
    candidates: list[Candidate] = []
    async with AsyncExitStack() as stack:
        apis = iter([await stack.enter_async_context(api_of(own_team.server)) for _ in range(3)])

        def one(identity: str) -> Candidate:
            candidates.append(Candidate(Leader(next(apis), own_team.namespace, NAME, identity)))
            return candidates[-1]

        yield one
        for candidate in candidates:
            await candidate.stop()


def lease(team: Team) -> Json:
    """What the Lease says."""
    found = team.get("Lease", NAME)
    assert found is not None
    spec: Json = found["spec"]
    return spec


async def test_the_lease_says_who_leads(stand: Stand, own_team: Team) -> None:
    await stand("pod-0").leads()
    spec = lease(own_team)
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("pod-0", 3)
    await until(lambda: lease(own_team)["renewTime"] > spec["renewTime"])
    assert lease(own_team)["acquireTime"] == spec["acquireTime"]


async def test_the_other_takes_over_from_one_that_is_killed(stand: Stand, own_team: Team) -> None:
    first = stand("pod-0")
    await first.leads()
    second = stand("pod-1")
    renewed = lease(own_team)["renewTime"]
    await until(lambda: lease(own_team)["renewTime"] > renewed)
    assert not second.leader.leads
    await first.kill()
    await second.leads()
    assert lease(own_team)["holderIdentity"] == "pod-1"


async def test_the_other_takes_over_at_once_from_one_that_ends(stand: Stand, own_team: Team) -> None:
    first = stand("pod-0")
    await first.leads()
    second = stand("pod-1")
    await first.stop()
    assert lease(own_team).get("holderIdentity") in {None, "", "pod-1"}
    await second.leads()


async def test_one_of_many_that_come_at_once_leads(stand: Stand, own_team: Team) -> None:
    candidates = [stand(f"pod-{number}") for number in range(3)]
    await until(lambda: any(candidate.leader.leads for candidate in candidates))
    (one,) = (candidate for candidate in candidates if candidate.leader.leads)
    renewed = lease(own_team)["renewTime"]
    await until(lambda: lease(own_team)["renewTime"] > renewed)
    assert [candidate.leader.leads for candidate in candidates].count(True) == 1
    assert one.leader.leads


async def test_who_has_lost_the_lease_to_another_ends(stand: Stand, own_team: Team) -> None:
    candidate = stand("pod-0")
    await candidate.leads()

    async def taken() -> bool:
        own_team.change("Lease", NAME, {"spec": {"holderIdentity": "thief", "renewTime": None}})
        return candidate.lost

    await until(taken)
    assert not candidate.leader.leads
    await candidate.process
    assert lease(own_team)["holderIdentity"] == "thief"


async def test_a_lease_that_somebody_touches_is_kept(stand: Stand, own_team: Team) -> None:
    candidate = stand("pod-0")
    await candidate.leads()
    for number in range(3):
        renewed = lease(own_team)["renewTime"]
        own_team.change("Lease", NAME, {"metadata": {"annotations": {"example.com/n": str(number)}}})
        await until(lambda renewed=renewed: lease(own_team)["renewTime"] > renewed)
    assert not candidate.lost


async def test_a_lease_that_says_nothing_is_taken(stand: Stand, own_team: Team) -> None:
    own_team.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NAME}})
    await stand("pod-0").leads()
    assert lease(own_team)["holderIdentity"] == "pod-0"
