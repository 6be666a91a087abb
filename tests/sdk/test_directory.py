"""How agents look up routes: once for all who want to know, and never from what may be out of date."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.agent import Agent
from agentstream.errors import AgentStreamError, ConnectionLost, NoRoute
from agentstream.testing import Faults
from support.servers import Server
from support.topology import Topology
from support.waiting import until


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder")
    return topology


def lookups(server: Server) -> int:
    """How often a route was read from the server."""
    with server.admin() as client:
        return client.info("commandstats").get("cmdstat_hget", {}).get("calls", 0)


async def test_a_thousand_who_send_at_once_look_a_route_up_once(server: Server, topology: Topology) -> None:
    async with topology.agent("planner") as planner:
        before = lookups(server)
        sent = await asyncio.gather(
            *(planner.send_message(to="coder", type="event", payload={"n": n}) for n in range(1000))
        )
        # that of the sender, and that of the addressee
        assert lookups(server) - before == 2
    assert [one.entry for one in sent] == sorted((one.entry for one in sent), key=_place)


async def test_who_is_cancelled_while_looking_up_takes_nobody_along(
    topology: Topology, proxy: Faults
) -> None:
    async with topology.agent("planner", url=proxy.url) as planner:
        with proxy.hold():
            sending = [asyncio.create_task(_send(planner, n)) for n in range(3)]
            await until(lambda: planner._directory._reads._calls)
            sending[0].cancel()
            await asyncio.wait({sending[0]})
        await asyncio.gather(*sending[1:])
        assert sending[0].cancelled()
    assert await topology.wire.call("XLEN", "{test.tasks}") == 2


async def test_all_who_look_up_are_told_that_the_server_cannot_be_reached(
    topology: Topology, proxy: Faults
) -> None:
    async with topology.agent("planner", url=proxy.url) as planner:
        with proxy.refuse():
            looked = await asyncio.gather(
                *(planner._directory.target("coder", None, 0) for _ in range(3)), return_exceptions=True
            )
        assert [type(error) for error in looked] == [ConnectionLost] * 3
        assert await planner._directory.target("coder", None, 0)


async def test_that_nothing_leads_there_is_never_said_from_what_was_known_before(topology: Topology) -> None:
    await topology.stream("results", "coder")
    async with topology.agent("coder") as coder:
        with pytest.raises(NoRoute):
            await coder._directory.target("planner", None, 0)
        # both routes are known now, and good for half a minute
        with pytest.raises(AgentStreamError):
            await coder._directory.target("planner", None, 0)
        await coder._directory._route("planner")
        await coder._directory._route("coder")
        await topology.group("results", "planner")
        assert (await coder._directory.target("planner", None, 0)).stream == "results"


async def _send(agent: Agent, n: int) -> None:
    await agent.send_message(to="coder", type="event", payload={"n": n})


def _place(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))
