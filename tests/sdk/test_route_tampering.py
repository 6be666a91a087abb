"""Somebody who can write to the server, but has no key, changes the routes of a signed stream."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

from agentstream import NoReply
from agentstream.agent import Agent
from agentstream.errors import SettingsError
from agentstream.protocol.keys import Nudge, StreamKeys, default_stream_key, nudge_channel, routes_key
from agentstream.protocol.routes import Consumes, Produces, Route, encode_route
from agentstream.protocol.signatures import SigningEntry, encode_signing, entry_name
from agentstream.transport.client import Client
from support.servers import Server
from support.signed import KEY, OLD, Signed
from support.topology import NAMESPACE, Topology, following, numbers
from support.waiting import until


@pytest.fixture
async def signed(server: Server, wire: Client, tmp_path: Path) -> Signed:
    """Signatures are required, and both have the key."""
    found = await Signed(Topology(wire, server.url), tmp_path).declare("Require")
    for agent in ("planner", "coder"):
        found.give(agent, OLD)
    return found


async def rewrite(signed: Signed, agent: str, route: Route) -> None:
    """Puts a route in place of the operator's, and has the agent read it."""
    wire = signed.topology.wire
    await wire.call("HSET", routes_key("agentstream", NAMESPACE), agent, encode_route(route))
    await wire.call("PUBLISH", nudge_channel("agentstream", NAMESPACE, agent), Nudge.ROUTES)


def message(n: int) -> bytes:
    return (
        b'{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-%012d","from":"planner","to":"coder","type":"event",'
        b'"payload":{"n":%d},"timestamp":1}' % (n, n)
    )


@pytest.mark.parametrize("policy", ["Off", "Warn", "off", ""])
async def test_a_route_cannot_switch_off_what_the_secret_requires(signed: Signed, policy: str) -> None:
    async with signed.agent("coder") as coder:
        await signed.send(0)
        deliveries = coder.stream_consume("tasks")
        assert await (await following(deliveries)).ack()
        await rewrite(
            signed, "coder", Route(consumes=(msgspec.structs.replace(signed.group, signatures=policy),))
        )
        await until(lambda: known(coder) == policy)
        await signed.add("m", message(1))
        await until(signed.reasons)
        await signed.send(2)
        assert await numbers(deliveries, 1) == [2]
    assert await signed.reasons() == ["Unsigned"]


def known(agent: Agent) -> str:
    """The policy of the route that the agent has read."""
    route, _ = agent._directory._known.get("coder", (None, 0.0))
    return "" if route is None else route.consumes[0].signatures


async def test_a_process_that_starts_under_the_changed_route_requires_signatures(signed: Signed) -> None:
    await rewrite(signed, "coder", Route(consumes=(msgspec.structs.replace(signed.group, signatures="Off"),)))
    await signed.add("m", message(1))
    await signed.send(2)
    async with signed.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [2]
    assert await signed.reasons() == ["Unsigned"]


@pytest.mark.parametrize("asked", ["tasks", None])
async def test_a_route_cannot_lead_to_a_stream_that_the_secret_does_not_name(
    signed: Signed, asked: str | None
) -> None:
    """Neither to the signed one under another name, nor to another one."""
    await signed.add("m", message(1))
    wire, other = signed.topology.wire, default_stream_key(NAMESPACE, "other")
    await wire.call("XGROUP", "CREATE", other, "coder", "0", "MKSTREAM")
    await wire.call("XGROUP", "CREATE", StreamKeys(other).retry("coder"), "coder", "0", "MKSTREAM")
    await wire.call("XADD", other, "*", "m", message(1))
    for key in (KEY, other):
        forged = Consumes("other", key, "coder", lease=2_000)
        await rewrite(signed, "coder", Route(consumes=(forged,)))
        async with signed.agent("coder") as coder:
            deliveries = coder.stream_consume(asked)
            waiting = asyncio.ensure_future(anext(deliveries))
            try:
                # an agent that asks for the stream by its name is told that it is declared nowhere
                looked_up = coder._directory._known
                await until(lambda: looked_up or waiting.done(), 20)  # noqa: B023 - awaited at once
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(waiting), 0.5)
            finally:
                waiting.cancel()
                coder.stop()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await waiting
        assert await wire.call("XPENDING", KEY, "coder") == [0, None, None, None]


async def test_a_stream_that_is_declared_later_is_consumed_once_the_secret_names_it(signed: Signed) -> None:
    topology = signed.topology
    await topology.stream("orders", "planner")
    await topology.group("orders", "coder")
    await topology.wire.call("XADD", default_stream_key(NAMESPACE, "orders"), "1-0", "m", message(7))
    async with signed.agent("coder") as coder:
        waiting = asyncio.create_task(numbers(coder.stream_consume("orders"), 1))
        await until(lambda: coder._keyring._known)
        assert not waiting.done()
        signed.write("coder", entry_name("orders"), encode_signing(SigningEntry()))
        assert await waiting == [7], "however old it is"
    assert await topology.dead_letters(topology.routes["coder"].consumes[1]) == []


async def test_a_sender_signs_whatever_its_route_says(signed: Signed) -> None:
    await rewrite(signed, "planner", Route(produces=(Produces("tasks", KEY),)))
    await signed.send(0)
    assert (await signed.entries())[0]["s"].startswith(b"old:")


async def test_a_sender_without_its_key_does_not_send_whatever_its_route_says(signed: Signed) -> None:
    signed.give("planner")
    await rewrite(signed, "planner", Route(produces=(Produces("tasks", KEY),)))
    async with signed.agent("planner") as planner:
        with pytest.raises(SettingsError, match="there is no key"):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
    assert await signed.entries() == []


async def test_a_requester_takes_no_unsigned_answer_whatever_its_route_says(signed: Signed) -> None:
    await rewrite(signed, "planner", Route(produces=(Produces("tasks", KEY),)))
    async with signed.agent("planner") as planner, signed.agent("coder") as coder:
        asking = asyncio.create_task(planner.request(to="coder", payload={}, timeout=1.0))
        delivery = await following(coder.stream_consume("tasks"))
        asked = delivery.message
        forged = msgspec.json.encode(
            {
                "v": 1,
                "id": "0b0e9d3e-4b55-4f6e-8f1c-000000000001",
                "from": "coder",
                "to": "planner",
                "type": "task_result",
                "payload": {},
                "timestamp": 1,
                "correlation_id": asked.id,
            }
        )
        await signed.topology.wire.call("XADD", asked.reply_to or "", "*", "m", forged)
        with pytest.raises(NoReply, match="1 replies without a valid signature were dropped"):
            await asking
        assert await delivery.ack()


@pytest.mark.parametrize("of_planner", ["Require", "Off"])
@pytest.mark.parametrize("of_coder", ["Require", "Off"])
async def test_while_a_lowered_policy_spreads_no_message_is_refused(
    signed: Signed, of_planner: str, of_coder: str
) -> None:
    """The operator has lowered policy and routes; each Secret has reached its pod, or has not."""
    for agent, policy in (("planner", of_planner), ("coder", of_coder)):
        signed.policy = policy
        signed.give(agent, OLD)
    await rewrite(signed, "planner", Route(produces=(Produces("tasks", KEY),)))
    await rewrite(signed, "coder", Route(consumes=(msgspec.structs.replace(signed.group, signatures="Off"),)))
    await signed.send(*range(5))
    async with signed.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 5) == list(range(5))
    assert await signed.reasons() == []


@pytest.mark.parametrize("of_coder", ["Require", "Off"])
async def test_while_a_raised_policy_spreads_nothing_unsigned_is_handled_and_nothing_signed_refused(
    signed: Signed, of_coder: str
) -> None:
    """The routes come first: what waits for the key of a consumer is put off."""
    signed.write("coder", entry_name("tasks"), encode_signing(SigningEntry(of_coder)))
    await signed.send(0)
    async with signed.agent("coder") as coder:
        waiting = asyncio.create_task(numbers(coder.stream_consume("tasks"), 1))
        await signed.add("m", message(9))
        await until(signed.reasons)
        signed.policy = "Require"
        signed.give("coder", OLD)
        assert await waiting == [0]
    assert await signed.reasons() == ["Unsigned"]
