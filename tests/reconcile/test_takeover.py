"""A stream of somebody else is imported, declared and taken over: groups go on where they were."""

from __future__ import annotations

import uuid

import pytest
import redis

from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.protocol.envelope import Message, encode
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.existing import COMMANDS, NoStream, look_at
from agentstream_operator.plan.takeover import ExistingStream, take_over
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.parse import parse_resource
from support.operator import operator
from support.servers import Server
from support.waiting import until

OLD = "{shop}:orders"
HOUR = 3_600_000


def body(sender: str) -> bytes:
    made = {"id": str(uuid.uuid4()), "sender": sender, "to": "worker", "type": "event"}
    return encode(Message(v=1, payload={}, timestamp=1.0, **made))


@pytest.fixture
def orders(admin: redis.Redis) -> int:
    """A stream with old and new messages and three groups. Returns the time of the oldest in ms."""
    seconds, _ = admin.time()
    oldest = int(seconds) * 1000 - 72 * HOUR
    for number in range(300):
        admin.xadd(
            OLD, {"m": body("boss" if number % 2 else "planner")}, id=f"{oldest + number * HOUR // 5}-0"
        )
    admin.xadd(OLD, {"other": "x"})
    for name in ("worker", "idle", "Not_A_Label"):
        admin.xgroup_create(OLD, name, "0")
    admin.xreadgroup("worker", "host-1", {OLD: ">"}, count=250)
    admin.xack(OLD, "worker", *(entry for entry, _ in admin.xrange(OLD, count=240)))
    admin.xreadgroup("Not_A_Label", "host-2", {OLD: ">"}, count=3)
    return oldest


async def looked_at(url: str) -> ExistingStream:
    client = Client(lambda: Endpoint(url), name="test")
    try:
        return await look_at(client.call, OLD)
    finally:
        await client.close()


async def test_a_stream_is_seen_as_it_is_by_a_user_who_only_reads(
    server: Server, admin: redis.Redis, orders: int
) -> None:
    rights = [f"+{command}" for command in COMMANDS]
    admin.execute_command(
        "ACL", "SETUSER", "reader", "reset", "on", ">pw", f"%R~{OLD}", f"%R~{OLD}*", *rights
    )
    admin.execute_command("ACL", "SETUSER", "reader", "+select", "+client|setname", "+client|setinfo")
    try:
        found = await looked_at(f"redis://reader:pw@127.0.0.1:{server.port}")
    finally:
        admin.acl_deluser("reader")
    assert (found.length, found.first, found.looked, found.foreign) == (301, f"{orders}-0", 301, 1)
    assert found.senders == ("boss", "planner")
    groups = {group.name: (group.pending, group.consumers) for group in found.groups}
    assert groups == {"worker": (10, ("host-1",)), "idle": (0, ()), "Not_A_Label": (3, ("host-2",))}


async def test_what_is_no_stream_is_said(server: Server, admin: redis.Redis) -> None:
    with pytest.raises(NoStream, match="orders is no stream: there is no such key"):
        await looked_at(server.url)
    admin.set(OLD, "x")
    with pytest.raises(NoStream, match="it is a string"):
        await looked_at(server.url)


@pytest.mark.parametrize("keeps", [True, False], ids=["as-imported", "without-its-retention"])
async def test_taking_it_over_loses_nothing_and_moves_no_group(
    server: Server, admin: redis.Redis, orders: int, *, keeps: bool
) -> None:
    del orders
    declared = take_over(await looked_at(server.url), OLD, "team")
    resources = [parse_resource(each.manifest) for each in declared if each.manifest is not None]
    assert sorted(resource.metadata.name for resource in resources) == ["idle", "shop-orders", "worker"]
    if not keeps:
        # the negative: with the usual day, what all have settled goes
        resources[0] = parse_resource({**(declared[0].manifest or {}), "spec": {"key": OLD}})
    for name in ("idle", "Not_A_Label"):
        entries = admin.xreadgroup(name, "host-2", {OLD: ">"})[0][1]
        admin.xack(OLD, name, *(entry for entry, _ in entries), *(e for e, _ in admin.xrange(OLD, count=3)))

    def state() -> tuple[list[object], int]:
        groups = sorted(admin.xinfo_groups(OLD), key=lambda group: str(group["name"]))
        return [(g["name"], g["last-delivered-id"], g["pending"]) for g in groups], admin.xlen(OLD)

    groups, length = state()
    async with operator(server.url, allowed_keys=(OLD,)) as op:
        for resource in resources:
            assert isinstance(resource, AgentStream | ConsumerGroup)
            await op.put(resource)
        # a pass of the janitor writes it
        await until(lambda: admin.hget(StreamKeys(OLD).meta, "checkpoint:worker"))
        if keeps:
            await op.engine.idle()
            assert state() == (groups, length)
        else:
            await until(lambda: admin.xlen(OLD) < length)
            assert state()[0] == groups


async def test_a_consumer_of_the_group_gets_what_was_pending_and_what_was_not_read(
    server: Server, admin: redis.Redis, orders: int
) -> None:
    del orders
    declared = take_over(await looked_at(server.url), OLD, "team")
    resources = [parse_resource(each.manifest) for each in declared if each.manifest is not None]
    async with operator(server.url, allowed_keys=(OLD,)) as op:
        for resource in resources:
            assert isinstance(resource, AgentStream | ConsumerGroup)
            await op.put(resource)
        secret = op.cluster.secrets["team", "worker"]
        source = Endpoint(server.url, secret.username, secret.password)
        settings = Settings(namespace="team", agent="worker", source=source, pod="host-9")
        handled = list[str]()
        async with Agent.connect(settings) as agent:
            async for delivery in agent.stream_consume("shop-orders"):
                async with delivery:
                    handled.append(delivery.message.id)
                if len(handled) == 60:
                    break
        await until(lambda: admin.xlen(StreamKeys(OLD).dead_letters("worker")) == 1)
    (letter,) = admin.xrange(StreamKeys(OLD).dead_letters("worker"))
    assert letter[1]["reason"] == "Malformed"
