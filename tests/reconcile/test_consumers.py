"""Consumers run as their group's backlog, template and resource want."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from agentstream.errors import ServerRefused
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.observe import Look
from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.operator import operator
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

KEYS = StreamKeys(KEY)
STREAM, GROUP = a_stream(producers=["planner"]), a_group()


async def test_consumers_follow_the_backlog_and_go_when_it_is_gone(
    server: Server, admin: redis.Redis
) -> None:
    group = a_group(
        template=TEMPLATE,
        startFrom="Beginning",
        autoscaling={"targetBacklog": 2, "maxReplicas": 3, "scaleDownAfter": "0s"},
    )
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        for number, wanted in ((1, 1), (2, 2), (9, 3)):
            for _ in range(number):
                admin.xadd(KEY, {"m": "{}"})
            await until(lambda wanted=wanted: op.cluster.workloads[group.key].replicas == wanted)
        await op.event(group.key, ConditionReason.SCALED_UP)
        (_, entries), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        admin.xack(KEY, "coder", *(entry for entry, _ in entries[:-1]))
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        admin.xack(KEY, "coder", entries[-1][0])
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        await op.event(group.key, ConditionReason.SCALED_DOWN)


async def test_a_due_retry_wakes_a_group_at_zero(server: Server, admin: redis.Redis) -> None:
    group = a_group(template=TEMPLATE, autoscaling={})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        admin.zadd(KEYS.delay("coder"), {b"\x93\xa3" + b"1-1\x01\x92\xa1m\xa2{}": 1})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)


async def test_a_group_without_consumers_of_its_own_adds_to_those_of_its_agent(
    server: Server, admin: redis.Redis
) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, autoscaling={"targetBacklog": 1})
    guest = a_group("guest", agent="coder", stream="more", startFrom="Beginning")
    async with operator(server.url) as op:
        await op.put(STREAM, a_stream("more"), host, guest)
        admin.xadd("{team.more}", {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 1)
        assert guest.key not in op.cluster.workloads


async def test_a_group_on_a_stream_that_is_missing_does_not_hold_up_the_others_of_its_agent(
    server: Server, admin: redis.Redis
) -> None:
    host = a_group("host", agent="coder", template=TEMPLATE, startFrom="Beginning", autoscaling={})
    guest = a_group("guest", agent="coder", stream="missing")
    async with operator(server.url) as op:
        await op.put(STREAM, host)
        op.declare(guest)
        await until(lambda: guest.key in op.cluster.statuses)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 1)


async def test_a_suspended_group_has_no_consumers(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE, replicas=2))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 2)
        op.declare(a_group(template=TEMPLATE, replicas=2, suspend=True, meta={"generation": 2}))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 0)
        op.declare(a_group(template=TEMPLATE, replicas=2, meta={"generation": 3}))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 2)


async def test_a_changed_template_is_applied_and_a_removed_one_ends_the_consumers(server: Server) -> None:
    other = {"spec": {"containers": [{"name": "agent", "command": ["other"]}]}}
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.declare(a_group(template=other, meta={"generation": 2}))
        await until(
            lambda: op.cluster.templates[GROUP.key].spec.template.spec.containers[0].command == ("other",)
        )
        op.declare(a_group(meta={"generation": 3}))
        await until(lambda: not op.cluster.workloads)


async def test_consumers_go_with_their_resource(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.engine.remove(GROUP.key)
        await until(lambda: not op.cluster.workloads)


async def test_consumers_that_crash_are_shown(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.cluster.workloads[GROUP.key] = WorkloadSeen(1, 0, crashing="exited with 1")
        await op.event(GROUP.key, ConditionReason.CRASH_LOOP)
        assert op.cluster.condition(GROUP.key, ConditionType.STALLED).message == "exited with 1"
        assert op.engine.view().groups[0].crashing == "exited with 1"


async def test_a_stall_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        monkeypatch.setattr("agentstream_operator.reconcile.observer.stalled", lambda *_: True)
        await op.event(GROUP.key, ConditionReason.NO_PROGRESS)


async def test_what_ran_stays_while_the_backlog_is_unknown(private_server: Server) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"scaleDownAfter": "0s"})
    async with operator(private_server.url) as op:
        await op.put(STREAM, group)
        with private_server.admin() as admin:
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        private_server.kill()
        await until(lambda: not op.engine.view().reachable)
        assert (await op.engine.summary()).groups[0].replicas == 1
        assert op.cluster.workloads[group.key].replicas == 1


async def test_the_backlog_is_unknown_while_that_of_one_of_the_agents_groups_is(
    server: Server, admin: redis.Redis
) -> None:
    class Blind:
        def __init__(self, broker: Any) -> None:
            self._broker = broker

        def __getattr__(self, name: str) -> Any:
            return getattr(self._broker, name)

        async def observe(self, key: str, groups: list[str]) -> Any:
            if key == "{team.more}":
                raise ServerRefused("cannot be read")
            return await self._broker.observe(key, groups)

        async def measure(self, looks: list[Look]) -> list[Any]:
            found = await self._broker.measure(looks)
            pairs = zip(looks, found, strict=True)
            return [ServerRefused("no") if look.key == "{team.more}" else seen for look, seen in pairs]

    host = a_group("host", agent="coder", template=TEMPLATE, autoscaling={})
    guest = a_group("guest", agent="coder", stream="more")
    async with operator(server.url, broker=Blind) as op:
        op.declare(STREAM, a_stream("more"), host, guest)
        await until(lambda: op.cluster.condition(host.key, ConditionType.SCALING_ACTIVE) is not None)
        condition = op.cluster.condition(host.key, ConditionType.SCALING_ACTIVE)
        assert condition is not None
        assert condition.reason is ConditionReason.LAG_UNKNOWN


async def test_the_work_of_every_group_is_told(server: Server, admin: redis.Redis) -> None:
    host = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"targetBacklog": 2})
    guest = a_group("guest", agent="coder", stream="missing")
    rival = a_group("rival", group="coder")
    async with operator(server.url) as op:
        op.declare(STREAM, host, guest, rival)
        await op.ready(host.key)
        for _ in range(3):
            admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[host.key].replicas == 2)
        await until(lambda: len(op.engine.work) == 2)
        work = {group.group: group for group in op.engine.work}
        assert work["coder"].signal.undelivered == 3
        assert (work["coder"].stream, work["coder"].desired) == ("tasks", 2)
        assert (work["guest"].signal.known, work["guest"].desired) == (False, None)
        said = ConditionType.SCALING_ACTIVE
        await until(lambda: op.cluster.says(host.key, said)[2] == "scaled by targetBacklog")


async def test_what_was_added_last_and_crashes_is_not_added_to(server: Server, admin: redis.Redis) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"targetBacklog": 1})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        op.cluster.workloads[group.key] = WorkloadSeen(1, 0, crashing="exited with 1")
        await op.event(group.key, ConditionReason.CRASH_LOOP)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: "are not ready" in op.cluster.says(group.key, ConditionType.SCALING_ACTIVE)[2])
        assert op.cluster.workloads[group.key].replicas == 1
        op.cluster.workloads[group.key] = WorkloadSeen(1, 1)
        await until(lambda: op.cluster.workloads[group.key].replicas == 2)


async def test_what_is_settled_between_two_looks_holds_its_consumer_only_until_the_next(
    server: Server, admin: redis.Redis
) -> None:
    group = a_group(template=TEMPLATE, startFrom="Beginning", autoscaling={"scaleDownAfter": "0s"})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        admin.xadd(KEY, {"m": "{}"})
        await until(lambda: op.cluster.workloads[group.key].replicas == 1)
        (_, ((entry, _),)), *_ = admin.xreadgroup("coder", "c", {KEY: ">"})
        with admin.pipeline(transaction=True) as together:
            together.xack(KEY, "coder", entry)
            together.hincrby(KEYS.stats("coder"), "settled", 1)
            together.execute()
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
