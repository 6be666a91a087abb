"""What an agent does to messages of others is told by a condition and an event; an annotation heals it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.resources.agentstream import AgentStream, ManagementPolicy
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import HEAL_ANNOTATION, PAUSED_ANNOTATION
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.operator import Operator, operator
from support.resources import KEY, a_group, a_stream
from support.servers import Server
from support.waiting import until

LAST = "18446744073709551615-18446744073709551615"
FUTURE = "32503680000000-0"
IDS_CURRENT = ("False", ConditionReason.IDS_CURRENT)
STREAM = a_stream(producers=["planner"])
CODER, AUDITOR = a_group(), a_group("auditor")
Attack = Callable[[redis.Redis], object]


def login(op: Operator, server: Server, agent: str) -> redis.Redis:
    """A connection with an agent's own credentials."""
    known = op.cluster.secrets["team", agent]
    return redis.Redis(
        port=server.port, username=known.username, password=known.password, decode_responses=True
    )


def condition(op: Operator, about: object, kind: ConditionType) -> tuple[str, ConditionReason] | None:
    status = op.cluster.statuses.get(about)  # type: ignore[call-overload]
    found = [c for c in status.conditions if c.type is kind] if status is not None else []
    return (found[0].status, found[0].reason) if found else None


def said(op: Operator, about: object) -> tuple[str, ConditionReason, str]:
    """What `Synced` says."""
    status = op.cluster.statuses[about]  # type: ignore[index]
    return next((c.status, c.reason, c.message) for c in status.conditions if c.type is ConditionType.SYNCED)


def lost(op: Operator) -> int:
    return next(g.account.lost for g in op.engine.view().groups if g.resource == CODER.key)


def sent(admin: redis.Redis, count: int = 100) -> list[str]:
    return [admin.xadd(KEY, {"m": str(n)}) for n in range(count)]


async def unread(op: Operator, admin: redis.Redis) -> None:
    """Declares stream and groups, and has the operator see a hundred messages that neither has read."""
    await op.put(STREAM, CODER, AUDITOR)
    sent(admin)
    await until(lambda: op.engine.view().groups[1].backlog == 100)


ATTACKS: dict[str, tuple[str, Attack, ConditionReason, int]] = {
    "adding trims": (
        "planner",
        lambda agent: agent.execute_command("XADD", KEY, "MAXLEN", "=", 0, "*", "f", "v"),
        ConditionReason.MESSAGES_VANISHED,
        101,
    ),
    "adding trims by id": (
        "planner",
        lambda agent: agent.execute_command("XADD", KEY, "MINID", "=", FUTURE, "*", "f", "v"),
        ConditionReason.MESSAGES_VANISHED,
        101,
    ),
    "read for another group without acknowledgement": (
        "auditor",
        lambda agent: agent.xreadgroup("coder", "x", {KEY: ">"}, noack=True),
        ConditionReason.MESSAGES_VANISHED,
        100,
    ),
    "another group moved past its stream": (
        "auditor",
        lambda agent: agent.execute_command("XCLAIM", KEY, "coder", "x", 0, "0-1", "LASTID", LAST),
        ConditionReason.GROUP_MOVED_AHEAD,
        100,
    ),
    "another group moved to the end of its stream": (
        "auditor",
        lambda agent: agent.execute_command(
            "XCLAIM", KEY, "coder", "x", 0, "0-1", "LASTID", agent.xrange(KEY)[-1][0]
        ),
        ConditionReason.MESSAGES_VANISHED,
        100,
    ),
    "read and acknowledged for another group": (
        "auditor",
        lambda agent: agent.xack(
            KEY, "coder", *(entry for entry, _ in agent.xreadgroup("coder", "x", {KEY: ">"})[0][1])
        ),
        ConditionReason.MESSAGES_VANISHED,
        100,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_messages_that_others_take_from_a_group_are_told(
    server: Server, admin: redis.Redis, attack: str
) -> None:
    agent, act, reason, count = ATTACKS[attack]
    async with operator(server.url) as op:
        await unread(op, admin)
        assert condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("False", ConditionReason.NONE_LOST)
        with login(op, server, agent) as connection:
            act(connection)
        await until(lambda: condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("True", reason))
        await op.event(CODER.key, reason)
        assert lost(op) == count
        assert op.cluster.ready(CODER.key), "what became of messages fails no upgrade"


@pytest.mark.parametrize("attack", ATTACKS)
async def test_they_are_told_by_an_operator_that_was_away(
    server: Server, admin: redis.Redis, attack: str
) -> None:
    agent, act, reason, _ = ATTACKS[attack]
    async with operator(server.url) as op:
        await unread(op, admin)
        connection, cluster = login(op, server, agent), op.cluster
    with connection:
        act(connection)
    async with operator(server.url, STREAM, CODER, AUDITOR, cluster=cluster) as op:
        await op.event(CODER.key, reason)
        assert condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("True", reason)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [(FUTURE, ConditionReason.IDS_IN_THE_FUTURE), (LAST, ConditionReason.IDS_EXHAUSTED)],
)
async def test_ids_of_the_future_are_told(
    server: Server, admin: redis.Redis, entry: str, reason: ConditionReason
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, CODER)
        assert condition(op, STREAM.key, ConditionType.IDS_IN_THE_FUTURE) == IDS_CURRENT
        with login(op, server, "planner") as connection:
            connection.xadd(KEY, {"f": "v"}, id=entry)
        await op.event(STREAM.key, reason)
        assert condition(op, STREAM.key, ConditionType.IDS_IN_THE_FUTURE) == ("True", reason)
        admin.xreadgroup("coder", "c", {KEY: ">"})
        # the janitor goes on
        passes = op.broker.round_trips
        await until(lambda: op.broker.round_trips > passes + 10)
        assert admin.hget(f"{KEY}:meta", "checkpoint:coder") is not None


def ids(admin: redis.Redis, key: str, group: str) -> list[str]:
    """Reads everything that a group is given, in order: what its messages say."""
    found = admin.xreadgroup(group, "c", {key: ">"}, count=1000)
    return [fields["m"] for _, fields in found[0][1] if "m" in fields] if found else []


def healing(resource: Any, how: str) -> Any:
    metadata = resource.metadata.model_copy(
        update={"annotations": {**resource.metadata.annotations, HEAL_ANNOTATION: how}}
    )
    return resource.model_copy(update={"metadata": metadata})


@pytest.mark.parametrize("attack", [name for name, (agent, *_) in ATTACKS.items() if agent == "auditor"])
async def test_what_is_still_there_is_delivered_again_if_that_is_wanted(
    server: Server, admin: redis.Redis, attack: str
) -> None:
    agent, act, reason, _ = ATTACKS[attack]
    async with operator(server.url) as op:
        everything = [str(n) for n in range(100)]
        await unread(op, admin)
        with login(op, server, agent) as connection:
            act(connection)
        await until(lambda: condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("True", reason))
        # passes of the janitor in between forget nothing
        sent(admin, 1)
        await until(lambda: op.engine.view().streams[0].length == 101)
        op.declare(healing(CODER, "repeat"))
        await op.event(CODER.key, ConditionReason.GROUP_HEALED)
        healthy = ("False", ConditionReason.NONE_LOST)
        await until(lambda: condition(op, CODER.key, ConditionType.MESSAGES_LOST) == healthy)
        assert ids(admin, KEY, "coder") == [*everything, "0"]
        assert op.cluster.reasons(CODER.key).count(ConditionReason.GROUP_HEALED) == 1


@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_is_gone_is_written_off_if_that_is_wanted(
    server: Server, admin: redis.Redis, attack: str
) -> None:
    agent, act, reason, _ = ATTACKS[attack]
    async with operator(server.url) as op:
        await unread(op, admin)
        with login(op, server, agent) as connection:
            act(connection)
        await until(lambda: condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("True", reason))
        op.declare(healing(CODER, "write-off"))
        healthy = ("False", ConditionReason.NONE_LOST)
        await until(lambda: condition(op, CODER.key, ConditionType.MESSAGES_LOST) == healthy)
        sent(admin, 1)
        assert ids(admin, KEY, "coder") == ["0"]


OBSERVED = STREAM.model_copy(
    update={
        "spec": STREAM.spec.model_copy(update={"management_policy": ManagementPolicy.OBSERVE_ONLY}),
    }
)


def paused(resource: Any) -> Any:
    annotations = {**resource.metadata.annotations, PAUSED_ANNOTATION: "true"}
    return resource.model_copy(
        update={"metadata": resource.metadata.model_copy(update={"annotations": annotations})}
    )


@pytest.mark.parametrize(
    ("stream", "group"), [(STREAM, paused(CODER)), (paused(STREAM), CODER), (OBSERVED, CODER)]
)
async def test_a_group_that_may_not_be_changed_is_told_of_and_not_healed(
    server: Server, admin: redis.Redis, stream: AgentStream, group: ConsumerGroup
) -> None:
    async with operator(server.url) as op:
        await unread(op, admin)
        op.declare(stream, healing(group, "repeat"))
        await until(lambda: said(op, CODER.key) == ("True", ConditionReason.PAUSED, ""))
        admin.xreadgroup("coder", "x", {KEY: ">"}, noack=True)
        await op.event(CODER.key, ConditionReason.MESSAGES_VANISHED)
        would = f"would heal the group coder of {KEY}"
        await until(lambda: said(op, CODER.key) == ("False", ConditionReason.PAUSED, would))
        passes = op.broker.round_trips
        await until(lambda: op.broker.round_trips > passes + 10)
        assert ids(admin, KEY, "coder") == []
        assert ConditionReason.GROUP_HEALED not in op.cluster.reasons(CODER.key)
        # once it may be changed again, it is
        op.declare(STREAM, healing(CODER, "repeat"))
        await op.event(CODER.key, ConditionReason.GROUP_HEALED)
        assert len(ids(admin, KEY, "coder")) == 100


@pytest.mark.parametrize(
    ("stream", "reason"),
    [(paused(STREAM), ConditionReason.PAUSED), (OBSERVED, ConditionReason.DRIFT)],
    ids=["paused", "observed"],
)
async def test_ids_of_a_stream_that_may_not_be_changed_are_told_and_not_healed(
    server: Server, admin: redis.Redis, stream: AgentStream, reason: ConditionReason
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, CODER)
        op.declare(healing(stream, "ids"))
        await until(lambda: said(op, STREAM.key)[1] is not ConditionReason.IN_SYNC)
        admin.xadd(KEY, {"m": "x"}, id=FUTURE)
        await op.event(STREAM.key, ConditionReason.IDS_IN_THE_FUTURE)
        would = f"would heal the ids of {KEY}"
        await until(lambda: said(op, STREAM.key) == ("False", reason, would))
        passes = op.broker.round_trips
        await until(lambda: op.broker.round_trips > passes + 10)
        assert admin.xinfo_stream(KEY)["last-generated-id"] == FUTURE
        assert ConditionReason.IDS_HEALED not in op.cluster.reasons(STREAM.key)


@pytest.mark.parametrize("entry", [FUTURE, LAST])
async def test_ids_of_the_future_heal_and_no_message_is_lost(
    server: Server, admin: redis.Redis, entry: str
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, CODER, AUDITOR)
        sent(admin)
        assert ids(admin, KEY, "coder") == [str(n) for n in range(100)], "in hand"
        with login(op, server, "planner") as connection:
            connection.xadd(KEY, {"m": "bad"}, id=entry)
        await until(
            lambda: condition(op, STREAM.key, ConditionType.IDS_IN_THE_FUTURE) not in (None, IDS_CURRENT)
        )
        op.declare(healing(STREAM, "ids"))
        await op.event(STREAM.key, ConditionReason.IDS_HEALED)
        await until(lambda: condition(op, STREAM.key, ConditionType.IDS_IN_THE_FUTURE) == IDS_CURRENT)
        everything = [*(str(n) for n in range(100)), "bad"]
        for group in ("coder", "auditor"):
            assert ids(admin, StreamKeys(KEY).retry(group), group) == everything
        (new,) = sent(admin, 1)
        assert int(new.partition("-")[0]) < int(FUTURE.partition("-")[0])
        assert (ids(admin, KEY, "coder"), ids(admin, KEY, "auditor")) == (["0"], ["0"])
        assert ConditionReason.DATA_LOST not in op.cluster.reasons(STREAM.key)
        assert lost(op) == 0
        assert condition(op, CODER.key, ConditionType.MESSAGES_LOST) == ("False", ConditionReason.NONE_LOST)
