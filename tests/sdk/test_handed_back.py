"""What is handed back is anybody's at once, and whoever claims next begins with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agentstream.consuming.hold import CLAIMED, Hold, claimed_holds
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import Gone
from support.topology import HANDED_BACK, Topology

Give = Callable[[list[Hold]], Awaitable[None]]

LEASE, INTERVAL = 60_000, 2_000
GONE = "pod-a"


class Held:
    """A group with messages that a process that is no more has left behind.

    Args:
        topology: the server.
        group: the group.
    """

    def __init__(self, topology: Topology, group: Consumes) -> None:
        self.topology = topology
        self.call = topology.wire.call
        self.group = group
        self.calls = GroupCalls(group, f"{GONE}.1")

    async def leave_behind(self, count: int) -> list[str]:
        """Adds messages that a process took, and anybody may claim. Returns their ids."""
        for _ in range(count):
            await self.topology.add_raw(self.group.key, b"{}")
        return await self.topology.left_behind(self.group)

    async def claim(self, count: int, consumer: str = f"{GONE}.1") -> list[Hold]:
        """What a consumer gets of them, up to so many."""
        calls = GroupCalls(self.group, consumer)
        _, found, *_ = await self.call(*calls.sweep(LEASE, INTERVAL, count, None, now=True))
        return list(claimed_holds(found, calls.main, 0))


@pytest.fixture
async def held(topology: Topology) -> Held:
    """The group, which no real consumer reads."""
    return Held(topology, await topology.group("tasks", "coder", lease=LEASE))


@pytest.fixture(params=["handed back", "freed"])
def give(request: pytest.FixtureRequest, held: Held, broker: Broker) -> Give:
    """Makes what this consumer claimed anybody's."""

    async def hand_back(entries: list[Hold]) -> None:
        assert set(await held.call(*held.calls.release(held.calls.main, CLAIMED, entries))) == {DONE}

    async def free(entries: list[Hold]) -> None:
        assert await broker.release_pod(held.group.key, "coder", Gone(GONE)) == len(entries)

    return hand_back if request.param == "handed back" else free


async def test_a_renewal_that_comes_later_leaves_it_anybodys(held: Held, give: Give) -> None:
    await held.leave_behind(1)
    entries = await held.claim(1)
    await give(entries)
    assert await held.call(*held.calls.renew(held.calls.main, entries)) == [DONE]
    ((_, _, idle, _),) = await held.topology.pending(held.group)
    assert idle >= HANDED_BACK


async def test_whoever_claims_next_begins_with_it(held: Held, give: Give) -> None:
    ids = await held.leave_behind(6)
    await give(await held.claim(3))
    assert [entry.id for entry in await held.claim(6, "other.1")] == ids
