"""What an agent writes harms its own stream at most: beside each poison, another tenant is served as ever."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.observe import Look
from agentstream_operator.plan.observed import CROWD, StreamSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

HOSTILE, VICTIM = "hostile", "victim"
STREAMS = [a_stream(namespace=each, producers=["coder"]) for each in (HOSTILE, VICTIM)]
GROUPS = [
    a_group(namespace=each, template=TEMPLATE, autoscaling={"scaleDownAfter": "0s"})
    for each in (HOSTILE, VICTIM)
]
KEYS, OTHERS = (StreamKeys(stream.stream_key) for stream in STREAMS)
STATS = KEYS.stats("coder")
COUNTERS = ("acked", "skipped", "settled", "resettled", "retried", "released", "dead", "trimmed")
EVERY = (*COUNTERS, "base:read", "base:settled", "le:1", "le:300000", "le:inf", "slowest")
GARBAGE = {
    "a word": "abc",
    "5,000 digits": "5" * 5_000,
    "a negative number": "-1",
    "a fraction": "1.5",
    "beyond any float": "1e400",
    "no number": "nan",
    "infinite": "inf",
    "nothing": "",
    "spaces": " 7 ",
    "no text": b"\xff\x00",
    "a MB": "x" * 1_000_000,
    "other digits": "٣",
    "one digit too many": "1" + "0" * 14,
}
Agent = redis.Redis


@dataclass(frozen=True)
class Poison:
    """What an agent may write.

    Attributes:
        write: writes it with the agent's own rights.
        says: the condition and the reason that the group of the agent then has; None if all is well.
    """

    write: Callable[[Agent], object]
    says: tuple[ConditionType, ConditionReason] | None = None


def counters(value: str | bytes) -> Poison:
    return Poison(
        lambda agent: agent.hset(STATS, mapping=dict.fromkeys(EVERY, value)),
        (ConditionType.LAG_KNOWN, ConditionReason.STATS_UNREADABLE),
    )


def crowd(agent: Agent) -> None:
    with agent.pipeline(transaction=False) as pipe:
        for number in range(CROWD + 1):
            pipe.xreadgroup("coder", f"made-up.{number}", {KEYS.stream: ">"})
        pipe.execute()


WRITTEN = ("a word", "5,000 digits", "no text", "a MB")
POISONS = {f"counters: {name}": counters(GARBAGE[name]) for name in WRITTEN} | {
    "200,000 fields": Poison(
        lambda agent: [
            agent.hset(STATS, mapping={f"{part}-{n}": "x" for n in range(20_000)}) for part in range(10)
        ]
    ),
    "retries at odd times": Poison(
        lambda agent: agent.zadd(
            KEYS.delay("coder"), {"a": math.inf, "b": -math.inf, "c": 1.5, "d": 1e300, "e": -7}
        )
    ),
    "retries that are none": Poison(lambda agent: agent.xadd(KEYS.retry("coder"), {"x": "\x00"})),
    "states of odd entries": Poison(
        lambda agent: agent.hset(KEYS.parked("coder"), mapping={"x": "", "0-0": "?", b"\xff": b"\xff"})
    ),
    "cursors": Poison(
        lambda agent: agent.hset(STATS, mapping={"forget:at": "x", "sweep:delayed": "1e400", "crowd:at": "x"})
    ),
    "consumers with odd names": Poison(
        lambda agent: [
            agent.execute_command("XREADGROUP", "GROUP", "coder", name, "STREAMS", KEYS.stream, ">")
            for name in (b"\xff.\xff", b"pod." + b"z" * 5_000, b"\x00", b".", b"pod.1-x")
        ]
    ),
    "a crowd of consumers": Poison(
        crowd, (ConditionType.RETENTION_HEALTHY, ConditionReason.TOO_MANY_CONSUMERS)
    ),
    "the last of all ids": Poison(
        lambda agent: agent.xadd(KEYS.stream, {"m": "{}"}, id="18446744073709551615-18446744073709551615")
    ),
    "odd ordering keys": Poison(lambda agent: agent.hset(KEYS.order, mapping={"k": "x", "l": "9" * 5_000})),
}


@contextlib.contextmanager
def login(server: Server, cluster: MemoryCluster, namespace: str) -> Iterator[Agent]:
    """A connection with the rights of the agent `coder` of a namespace."""
    credentials = cluster.secrets[namespace, "coder"]
    with redis.Redis(
        port=server.port, username=credentials.username, password=credentials.password, protocol=2
    ) as agent:
        yield agent


@contextlib.asynccontextmanager
async def two_tenants(server: Server, cluster: MemoryCluster, **how: Any) -> AsyncIterator[Operator]:
    async with operator(server.url, cluster=cluster, **how) as op:
        await op.put(*STREAMS, *GROUPS)
        for group in GROUPS:
            await scaled(op, group, 0)
        yield op


async def scaled(op: Operator, group: ConsumerGroup, replicas: int) -> None:
    await until(lambda: (found := op.cluster.workloads.get(group.key)) and found.replicas == replicas)


async def is_served(op: Operator, server: Server) -> None:
    """Waits until the other tenant was scaled up and down again, and his stream was cleaned up."""
    group, key = GROUPS[1], OTHERS.stream
    await scaled(op, group, 0)
    with login(server, op.cluster, VICTIM) as agent:
        entry = agent.xadd(key, {"m": "{}"}).decode()
        await scaled(op, group, 1)
        agent.xreadgroup("coder", "pod.1-x", {key: ">"})
        # as the function that settles does
        agent.hincrby(OTHERS.stats("coder"), "settled", 1)
        agent.xack(key, "coder", entry)
    with server.admin() as admin:
        checkpoint = "checkpoint:coder"
        await until(lambda: admin.hget(OTHERS.meta, checkpoint) == entry)
    for resource in (STREAMS[1], group):
        assert op.cluster.ready(resource.key)
        healthy = op.cluster.condition(resource.key, ConditionType.RETENTION_HEALTHY)
        assert healthy is not None
        assert healthy.status == "True"


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
async def test_what_an_agent_writes_harms_no_other_tenant(server: Server, poison: Poison) -> None:
    cluster = MemoryCluster()
    async with two_tenants(server, cluster) as op:
        with login(server, cluster, HOSTILE) as agent:
            poison.write(agent)
        if poison.says is not None:
            kind, reason = poison.says
            await until(lambda: op.cluster.says(GROUPS[0].key, kind)[:2] == ("False", reason))
            assert op.cluster.reasons(GROUPS[0].key).count(reason) == 1
        await is_served(op, server)
    # an operator that starts meets what it left
    async with operator(server.url, *map(cluster.as_stored, (*STREAMS, *GROUPS)), cluster=cluster) as op:
        await is_served(op, server)


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
async def test_a_counter_without_a_number_gets_its_last_value_back(
    server: Server, admin: redis.Redis, value: str | bytes
) -> None:
    cluster, group = MemoryCluster(), GROUPS[0]
    known = {name: str(n) for n, name in enumerate(EVERY)} | {"base:read": "0"}
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAMS[0], group)
        admin.hset(STATS, mapping=known)
        await until(lambda: has_settled(op, 2 + 3))
        (before,) = op.engine.view().groups
        with login(server, cluster, HOSTILE) as agent:
            agent.hset(STATS, mapping=dict.fromkeys(EVERY, value))
            await until(lambda: cluster.says(group.key, ConditionType.LAG_KNOWN)[0] == "False")
            assert [agent.hget(STATS, name) for name in EVERY] == [known[name].encode() for name in EVERY]
        await until(lambda: has_settled(op, 2 + 3))
        (after,) = op.engine.view().groups
        assert after.account == before.account
        assert cluster.ready(group.key)


async def has_settled(op: Operator, count: int) -> bool:
    """Whether so many messages of the hostile group were settled, as the operator knows."""
    (work,) = (await op.engine.figures()).groups
    return work.signal.settled == count


@given(st.dictionaries(st.sampled_from(EVERY), st.one_of(st.binary(max_size=30), st.integers().map(str))))
async def test_whatever_a_counter_holds_only_numbers_are_observed(
    server: Server, broker: Broker, written: dict[str, bytes | str]
) -> None:
    with server.admin() as admin:
        admin.delete(STATS)
        if written:
            admin.hset(STATS, mapping=written)
    seen, beside = await broker.measure([Look(KEYS.stream, ("coder",)), Look(OTHERS.stream, ("coder",))])
    assert isinstance(seen, StreamSeen)
    assert isinstance(beside, StreamSeen)
    group = seen.groups["coder"]
    assert group.stats.keys() | set(group.misread) == written.keys()
    for name, value in group.stats.items():
        assert int(written[name]) == value
        assert 0 <= value < 10**14


class Failing:
    """A broker of which some calls raise for the hostile stream."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def janitor(self, spec: Any) -> Any:
        if spec.key == KEYS.stream:
            raise ServerRefused("ERR odd retry")
        return await self._broker.janitor(spec)


async def test_a_stream_that_cannot_be_cleaned_up_says_so(server: Server) -> None:
    cluster = MemoryCluster()
    async with two_tenants(server, cluster, broker=Failing) as op:
        kind = ConditionType.RETENTION_HEALTHY
        said = ("False", ConditionReason.JANITOR_FAILED, "cannot clean up the stream: ERR odd retry")
        await until(lambda: cluster.says(STREAMS[0].key, kind) == said)
        await is_served(op, server)
        assert cluster.reasons(STREAMS[0].key).count(ConditionReason.JANITOR_FAILED) == 1


@pytest.mark.parametrize(
    "place",
    [
        "observer.counters",
        "observer.follow_rate",
        "observer.follow_progress",
        "loops.janitor.retention_healthy",
        "loops.monitor.decide_replicas",
        "loops.wakeup.decide_replicas",
        "resources.groups.numbers_of_group",
        "resources.streams.numbers_of_stream",
    ],
)
async def test_a_bug_that_one_stream_brings_out_harms_no_other_tenant(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    module, _, name = f"agentstream_operator.reconcile.{place}".rpartition(".")
    good = getattr(importlib.import_module(module), name)

    def bad(*args: Any, **how: Any) -> Any:
        if raising and HOSTILE in repr(args):
            raise ValueError("a bug")
        return good(*args, **how)

    raising = False
    monkeypatch.setattr(f"{module}.{name}", bad)
    cluster = MemoryCluster()
    async with two_tenants(server, cluster) as op:
        raising = True
        with login(server, cluster, HOSTILE) as agent:
            agent.xadd(KEYS.stream, {"m": "{}"})
        await is_served(op, server)
        raising = False
        await scaled(op, GROUPS[0], 1)
    assert caplog.text.count("a bug") < 20
