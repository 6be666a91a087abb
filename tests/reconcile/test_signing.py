"""Keys of signed streams: made once, rotated, and in the Secrets of those who need them alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from agentstream.agent import Agent
from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.routes import decode_route
from agentstream.protocol.signatures import SigningKey, decode_signing, entry_name
from agentstream_operator.cluster.port import ChildNotOurs, Credentials, Owner, SigningKeys
from agentstream_operator.plan.signing import SPREAD
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import KEY, PAUSED, ROUTES, a_group, a_stream
from support.servers import Server
from support.topology import numbers
from support.waiting import until

GROUP = a_group()
OTHER = a_stream("orders", producers=["clerk"])
STREAM = a_stream().key


def a_signed_stream(
    policy: str = "Require", rotation: int = 0, producers: Iterable[str] = ("planner",), **more: Any
) -> AgentStream:
    """A version of the stream; each change has a generation of its own."""
    a_signed_stream.generation += 1
    return a_stream(
        producers=list(producers),
        signing={"policy": policy, "rotation": rotation},
        meta={"generation": a_signed_stream.generation},
        **more,
    )


a_signed_stream.generation = 1


def keys(op: Operator) -> list[str]:
    """The ids of the stream's keys, the newest first."""
    found = op.cluster.signing.get(STREAM)
    return [key.id for key in found.keys] if found is not None else []


def given(op: Operator, agent: str) -> list[str]:
    """The ids of the keys that an agent has of the stream."""
    text = op.cluster.secrets["team", agent].signing.get("tasks")
    return [key.id for key in decode_signing(text).keys] if text is not None else []


def policies(op: Operator, agent: str, *streams: str) -> list[str]:
    """What the agent's Secret asks of these streams; without any, of `tasks`."""
    signing = op.cluster.secrets["team", agent].signing
    return [decode_signing(signing[stream]).policy for stream in streams or ("tasks",) if stream in signing]


async def test_keys_are_made_and_given_to_those_who_produce_or_consume(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP, OTHER)
        made = keys(op)
        assert len(made) == 1
        assert (given(op, "planner"), given(op, "coder")) == (made, made)
        assert op.cluster.secrets["team", "clerk"].signing == {}
        routes = {agent: decode_route(text.encode()) for agent, text in admin.hgetall(ROUTES).items()}
        assert routes["planner"].produces[0].signatures == "Require"
        assert routes["coder"].consumes[0].signatures == "Require"
        assert routes["clerk"].produces[0].signatures == "Off"
        assert ConditionReason.SIGNING_KEY_MADE not in op.cluster.reasons(STREAM), (
            "that is what everybody expects"
        )
        secret = op.cluster.signing[STREAM].keys[0].secret
        assert len(secret) == 43
        reported = " ".join(event.message for event in op.cluster.events)
        assert secret not in reported + repr(op.cluster.signing) + repr(op.cluster.secrets)


async def test_an_agent_has_keys_from_the_first_moment_it_has_rights(server: Server) -> None:
    class Watching(MemoryCluster):
        async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
            assert "tasks" in credentials.signing
            await super().apply_credentials(credentials, owners)

    async with operator(server.url, a_signed_stream(), GROUP, cluster=Watching()) as op:
        await op.ready(GROUP.key)


async def test_an_operator_that_starts_anew_changes_nothing(server: Server) -> None:
    cluster = MemoryCluster()
    stream = a_signed_stream()
    async with operator(server.url, cluster=cluster) as op:
        await op.put(stream, GROUP)
    cluster.writes.clear()
    async with operator(server.url, stream, GROUP, cluster=cluster) as op:
        await op.engine.idle()
        assert op.engine.health is not None
        assert not {"apply_signing_keys", "apply_credentials"} & cluster.writes.keys()


async def test_a_stream_that_becomes_signed_gets_keys_and_agents_keep_their_passwords(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), GROUP)
        assert keys(op) == []
        before = op.cluster.secrets["team", "coder"].password
        op.declare(a_signed_stream("Warn"))
        await until(lambda: keys(op) and given(op, "planner") == given(op, "coder") == keys(op))
        assert op.cluster.secrets["team", "coder"].password == before


@pytest.mark.parametrize("lower", ["Off", "Warn"])
async def test_when_the_policy_is_lowered_agents_keep_the_keys(server: Server, lower: str) -> None:
    """Senders go on signing: a consumer whose Secret is older refuses what is not signed."""
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        made = keys(op)
        for policy in (lower, "Require"):
            op.declare(a_signed_stream(policy))
            await until(lambda policy=policy: policies(op, "coder") == policies(op, "planner") == [policy])
            assert given(op, "planner") == given(op, "coder") == keys(op) == made


async def test_a_stream_that_loses_its_signing_altogether_keeps_the_keys_over_a_restart(
    server: Server,
) -> None:
    cluster = MemoryCluster()
    plain = a_stream(producers=["planner"], meta={"generation": 99})
    async with operator(server.url, cluster=cluster) as op:
        await op.put(a_signed_stream(), GROUP)
        made = keys(op)
        op.declare(plain)
        await until(lambda: policies(op, "coder") == policies(op, "planner") == ["Off"])
    async with operator(server.url, plain, GROUP, cluster=cluster) as op:
        await op.engine.idle()
        assert given(op, "planner") == given(op, "coder") == made


async def test_beside_a_signed_stream_a_secret_names_all_that_the_agent_consumes(server: Server) -> None:
    async with operator(server.url) as op:
        plain = a_group("orders-coder", stream="orders", agent="coder")
        await op.put(OTHER, plain)
        assert op.cluster.secrets["team", "coder"].signing == {}
        await op.put(a_signed_stream(), GROUP)
        await until(lambda: policies(op, "coder", "tasks", "orders") == ["Require", "Off"])
        op.declare(
            a_stream("orders", producers=["clerk"], signing={"policy": "Warn"}, meta={"generation": 7})
        )
        await until(lambda: policies(op, "coder", "tasks", "orders") == ["Require", "Warn"])
        assert ConditionReason.SIGNING_KEYS_LOST not in op.cluster.reasons(OTHER.key)


async def test_who_no_longer_produces_loses_the_keys(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(producers=["planner", "clerk"]), OTHER)
        assert given(op, "clerk") == keys(op)
        op.declare(a_signed_stream(producers=["planner"]))
        await until(lambda: not given(op, "clerk"))
        assert given(op, "planner") == keys(op)


async def test_until_everything_is_listed_nobody_loses_keys(server: Server) -> None:
    cluster = MemoryCluster()
    stream, orders = a_signed_stream(), a_stream("orders", producers=["planner"])
    async with operator(server.url, cluster=cluster) as op:
        await op.put(stream, orders)
    async with operator(server.url, orders, cluster=cluster, complete=False) as op:
        await op.engine.idle()
        assert given(op, "planner") == keys(op)
        op.declare(stream)
        op.engine.listed()
        await op.engine.idle()
        assert given(op, "planner") == keys(op)


async def test_a_rotation_makes_a_key_and_the_one_before_stays(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        (first,) = keys(op)
        op.declare(a_signed_stream(rotation=1))
        await until(lambda: len(given(op, "coder")) == 2 and given(op, "planner") == given(op, "coder"))
        newest, older = op.cluster.signing[STREAM].keys
        assert older.id == first
        assert newest.id != first
        assert newest.signs_from >= older.signs_from + SPREAD
        assert op.cluster.reasons(STREAM).count(ConditionReason.SIGNING_KEY_MADE) == 1
        op.engine.check_all()
        await op.engine.idle()
        assert keys(op) == [newest.id, first], "one rotation makes one key"


async def test_a_further_rotation_waits_until_nobody_signs_with_the_key_that_goes(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        op.declare(a_signed_stream(rotation=1))
        await until(lambda: len(keys(op)) == 2)
        before = keys(op)
        op.declare(a_signed_stream(rotation=5))
        await op.engine.idle()
        assert keys(op) == before
        now = op.engine._state.now
        op.engine._state.now = lambda: now() + timedelta(seconds=2 * SPREAD + 1)
        op.engine.check_all()
        await until(lambda: keys(op)[1:] == before[:1])
        await until(lambda: given(op, "coder") == given(op, "planner") == keys(op))


async def test_keys_that_are_lost_are_replaced_and_that_is_told(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        before = keys(op)
        del op.cluster.signing[STREAM]
        op.engine.requeue(STREAM)
        await op.event(STREAM, ConditionReason.SIGNING_KEYS_LOST)
        await until(lambda: given(op, "coder") == given(op, "planner") == keys(op))
        assert keys(op) != before
        (lost,) = (event for event in op.cluster.events if event.reason is ConditionReason.SIGNING_KEYS_LOST)
        assert lost.warning


async def test_keys_that_somebody_changed_reach_the_agents(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        found = op.cluster.signing[STREAM]
        imported = SigningKey("imported", "i" * 43)
        op.cluster.signing[STREAM] = replace(found, keys=(imported,))
        op.engine.requeue(STREAM)
        await until(lambda: given(op, "coder") == given(op, "planner") == ["imported"])
        assert keys(op) == ["imported"]


async def test_a_stream_that_is_made_again_takes_over_the_keys(server: Server) -> None:
    async with operator(server.url) as op:
        stream = a_signed_stream()
        await op.put(stream)
        made = keys(op)
        metadata = stream.metadata.model_copy(update={"uid": "another"})
        op.declare(stream.model_copy(update={"metadata": metadata}))
        await until(lambda: op.cluster.signing[STREAM].owner == "another")
        assert keys(op) == made


async def test_for_a_stream_that_may_not_be_changed_no_key_is_made(server: Server) -> None:
    async with operator(server.url) as op:
        op.declare(a_signed_stream(annotations=PAUSED))
        await op.engine.idle()
        assert keys(op) == []
        op.declare(a_signed_stream())
        await until(lambda: keys(op))


async def test_keys_that_cannot_be_kept_are_told_of_until_they_can(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(MemoryCluster):
        refuses = True

        async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
            if self.refuses:
                raise ChildNotOurs("the Secret agentstream-signing.tasks belongs to somebody else")
            await super().apply_signing_keys(keys, owner)

    monkeypatch.setattr("agentstream_operator.reconcile.resources.signing._RETRY", 0.05)
    cluster = Refusing()
    async with operator(server.url, a_signed_stream(), cluster=cluster) as op:
        await until(
            lambda: (
                (found := cluster.condition(STREAM, ConditionType.CREDENTIALS_SYNCED)) is not None
                and found.reason is ConditionReason.CHILD_NOT_OURS
            )
        )
        status, _, message = cluster.says(STREAM, ConditionType.CREDENTIALS_SYNCED)
        assert (status, message) == ("False", "the Secret agentstream-signing.tasks belongs to somebody else")
        assert not cluster.ready(STREAM)
        cluster.refuses = False
        await op.ready(STREAM)
        await until(lambda: given(op, "planner") == keys(op) != [])


async def test_agents_sign_and_check_with_what_the_operator_gives_them(
    server: Server, admin: redis.Redis, tmp_path: Path
) -> None:
    def agent(op: Operator, name: str) -> Agent:
        credentials = op.cluster.secrets["team", name]
        directory = tmp_path / name
        directory.mkdir()
        entries = {"uri": server.url, "username": credentials.username, "password": credentials.password}
        entries |= {entry_name(stream): text for stream, text in credentials.signing.items()}
        for entry, text in entries.items():
            (directory / entry).write_text(text)
        return Agent.connect(Settings(namespace="team", agent=name, source=Binding(directory), pod=name))

    async with operator(server.url) as op:
        await op.put(a_signed_stream(), GROUP)
        async with agent(op, "planner") as planner, agent(op, "coder") as coder:
            for n in range(10):
                await planner.send_message(to="coder", type="event", payload={"n": n})
            admin.xadd(KEY, {"m": "{}"})
            async with asyncio.timeout(20):
                assert await numbers(coder.stream_consume("tasks"), 10) == list(range(10))
            await until(lambda: admin.xlen(f"{KEY}:dlq:coder"))
        ((_, letter),) = admin.xrange(f"{KEY}:dlq:coder")
        assert letter["reason"] == "Unsigned"
        assert {fields.get("s", "").partition(":")[0] for _, fields in admin.xrange(KEY)} == {"", *keys(op)}
