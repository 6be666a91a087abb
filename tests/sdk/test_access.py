"""The rights that the operator gives an agent are all that the SDK needs."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from agentstream.errors import RequestFailed
from agentstream.protocol.routes import Consumes
from agentstream.sending.outgoing import OutgoingMessage
from agentstream.transport.client import Client
from agentstream_operator.plan.access import AgentUse, set_user
from support.servers import Server
from support.topology import NAMESPACE, Topology, following
from support.waiting import until


@pytest.fixture
async def topology(topology: Topology, wire: Client) -> Topology:
    """`planner` produces to `tasks` and `news`, and `coder` consumes both."""
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("tasks", "coder", max_deliveries=2)
    await topology.group("news", "coder", broadcast=True)
    for agent in topology.routes:
        route = topology.route(agent)
        use = AgentUse(NAMESPACE, agent, route.produces, route.consumes)
        user = set_user(use, "agentstream", (hashlib.sha256(b"secret").hexdigest(),))
        await wire.call(
            "ACL", "SETUSER", user.name, *user.rules, *(f"#{one}" for one in user.password_hashes)
        )
    await wire.call("ACL", "LOG", "RESET")
    return topology


def url_of(server: Server, agent: str) -> str:
    return server.url.replace("//", f"//agentstream.{NAMESPACE}.{agent}:secret@")


async def test_agents_need_no_right_that_they_do_not_have(
    server: Server, wire: Client, topology: Topology
) -> None:
    tasks, news = topology.routes["coder"].consumes
    async with (
        topology.agent("planner", url=url_of(server, "planner")) as planner,
        topology.agent("coder", url=url_of(server, "coder")) as coder,
    ):
        for n in range(4):
            await planner.send_message(to="coder", type="event", payload={"n": n})
        await planner.send_message(to="broadcast", type="event", payload={})
        await topology.add_raw(tasks.key, b"{")
        async with coder.stream_consume("tasks") as deliveries:
            await (await following(deliveries)).ack()
            await (await following(deliveries)).retry(after=0)
            await (await following(deliveries)).release()
            await (await following(deliveries)).dead_letter("no")
            again = await following(deliveries)
            assert again.attempt == 2
            await again.retry(after=0)
        async with coder.stream_consume("news") as deliveries:
            await (await following(deliveries)).retry(after=0.01)
            await (await following(deliveries)).ack()
        await _take_over_and_renew(topology, tasks, server)
    assert {record["reason"] for record in await topology.dead_letters(tasks)} >= {b"no", b"Malformed"}
    assert await topology.settled(news, 1)
    assert await wire.call("ACL", "LOG") == []


async def test_batches_keys_and_effects_need_no_other_right(
    server: Server, wire: Client, topology: Topology
) -> None:
    async with (
        topology.agent("planner", url=url_of(server, "planner")) as planner,
        topology.agent("coder", url=url_of(server, "coder")) as coder,
    ):
        many = [
            OutgoingMessage(to="coder", type="event", payload={}, key="k", once=once) for once in ("a", "b")
        ]
        first, _, again = await planner.send_many([*many, many[0]])
        assert again.entry == first.entry
        async with coder.stream_consume("tasks") as deliveries:
            async with await following(deliveries) as delivery, delivery.once("effect") as is_first:
                assert (delivery.entry, is_first) == (first.entry, True)
                raise ZeroDivisionError
    assert await wire.call("ACL", "LOG") == []


async def test_receipts_answers_and_notifications_need_no_other_right(
    server: Server, wire: Client, topology: Topology
) -> None:
    async with (
        topology.agent("planner", url=url_of(server, "planner")) as planner,
        topology.agent("coder", url=url_of(server, "coder")) as coder,
        coder.notifications() as notes,
    ):
        receipt = await planner.broadcast(type="event", payload={})
        async with coder.stream_consume("news") as deliveries, await following(deliveries):
            assert (await receipt.status()).outstanding == ("coder",)
        assert (await receipt.wait()).acknowledged == ("coder",)
        async with coder.stream_consume("tasks") as deliveries:
            asking = asyncio.create_task(planner.request(to="coder", payload={}))
            async with await following(deliveries) as delivery:
                await delivery.reply({"n": 1})
            assert (await asking).payload == {"n": 1}
            asking = asyncio.create_task(planner.request(to="coder", payload={}))
            await (await following(deliveries)).dead_letter("no")
            with pytest.raises(RequestFailed):
                await asking
        for to in ("coder", "broadcast"):

            async def is_heard(to: str = to) -> bool:
                return await planner.notify(to, {"to": to}) == 1

            await until(is_heard)
        async with asyncio.timeout(10):
            assert {(await anext(notes)).payload["to"] for _ in range(2)} == {"coder", "broadcast"}
    assert await wire.call("ACL", "LOG") == []


async def _take_over_and_renew(topology: Topology, tasks: Consumes, server: Server) -> None:
    """Another process takes the released message over, and renews its lease."""
    async with topology.agent("coder", pod="other", url=url_of(server, "coder")) as other:
        async with other.stream_consume("tasks") as deliveries:
            delivery = await following(deliveries)
            most = 0

            async def is_renewed() -> bool:
                nonlocal most
                ((_, _, idle, _),) = await topology.pending(tasks, retries=True)
                most = max(most, idle)
                return idle < most

            await until(is_renewed)
            assert await delivery.ack()
