"""What fails is said, tried again, and stops nothing else."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentstream.errors import AgentStreamError, ConnectionLost, ServerRefused
from agentstream_operator.plan.actions import SetUser
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.operator import operator
from support.resources import TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM, GROUP = a_stream(producers=["planner"]), a_group()


class Faulty:
    """A broker of which some calls fail, or wait.

    Attributes:
        faults: what a method raises; `set_user` is applying that action.
        failed: how often a method did.
        held: calls of `observe` return only after this is set.
    """

    def __init__(self) -> None:
        self.faults: dict[str, Exception] = {}
        self.failed: dict[str, int] = {}
        self.held = asyncio.Event()
        self.held.set()

    def around(self, broker: Any) -> Faulty:
        self._broker = broker
        return self

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            method = "set_user" if name == "apply" and isinstance(args[0], SetUser) else name
            if method in self.faults:
                self.failed[method] = self.failed.get(method, 0) + 1
                raise self.faults[method]
            reply = await getattr(self._broker, name)(*args)
            if name in {"observe", "measure"}:
                await self.held.wait()
            return reply

        return call


async def test_a_user_that_cannot_be_written_is_told_and_tried_again(server: Server) -> None:
    broker = Faulty()
    broker.faults["set_user"] = AgentStreamError("the user may do more than it should")
    async with operator(server.url, broker=broker.around) as op:
        op.declare(STREAM)
        await op.event(STREAM.key, ConditionReason.CREDENTIALS_FAILED)
        condition = op.cluster.condition(STREAM.key, ConditionType.READY)
        assert condition is not None
        assert condition.message == "the user may do more than it should"
        del broker.faults["set_user"]
        await op.ready(STREAM.key)


async def test_a_connection_that_breaks_while_a_user_is_written_is_no_failure_of_the_user(
    server: Server,
) -> None:
    broker = Faulty()
    broker.faults["set_user"] = ConnectionLost("broken")
    async with operator(server.url, broker=broker.around) as op:
        op.declare(STREAM)
        await until(lambda: broker.failed.get("set_user", 0) > 1)
        del broker.faults["set_user"]
        await op.ready(STREAM.key)
        assert ConditionReason.CREDENTIALS_FAILED not in op.cluster.reasons(STREAM.key)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("janitor", "clean up AgentStream team/tasks"),
        ("measure", "measure"),
        ("users", "list users and routes"),
    ],
)
@pytest.mark.parametrize("fault", [ServerRefused("no"), RuntimeError("a bug")])
async def test_what_is_done_all_the_time_goes_on_after_a_failure(
    server: Server, caplog: pytest.LogCaptureFixture, method: str, fault: Exception, what: str
) -> None:
    broker = Faulty()
    with caplog.at_level(logging.WARNING):
        async with operator(server.url, broker=broker.around) as op:
            await op.put(STREAM, GROUP)
            broker.faults[method] = fault
            await until(lambda: broker.failed.get(method, 0) > 1)
            await until(lambda: f"cannot {what}" in caplog.text)
            assert caplog.text.count(f"cannot {what}") <= 2
            del broker.faults[method]
            await op.put(a_stream("another", producers=["new"]))


async def test_a_cluster_that_fails_stops_nothing(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(MemoryCluster):
        broken = True

        async def workload(self, group: ResourceKey) -> Any:
            if self.broken:
                raise RuntimeError("no answer")
            return await super().workload(group)

    cluster = Broken()
    with caplog.at_level(logging.ERROR):
        async with operator(server.url, cluster=cluster) as op:
            op.declare(STREAM, a_group(template=TEMPLATE))
            await op.ready(STREAM.key)
            await until(lambda: "ConsumerGroup team/coder: reconciling failed" in caplog.text)
            cluster.broken = False
            await until(lambda: GROUP.key in cluster.workloads)


async def test_what_is_removed_while_it_is_measured_is_forgotten(server: Server) -> None:
    broker = Faulty()
    async with operator(server.url, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        broker.held.clear()
        op.engine.check_all()
        for key in (GROUP.key, STREAM.key):
            op.engine.remove(key)
            op.cluster.forget(key)
        broker.held.set()
        await op.engine.idle()
        assert op.engine.view().streams == ()
        assert op.engine.view().groups == ()


async def test_a_group_that_is_removed_while_its_stream_is_measured_is_forgotten(server: Server) -> None:
    broker = Faulty()
    async with operator(server.url, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        broker.held.clear()
        measuring = asyncio.create_task(op.engine.summary())
        await asyncio.sleep(0)
        op.engine.remove(GROUP.key)
        broker.held.set()
        assert (await measuring).groups == ()
        await op.ready(STREAM.key)


async def test_consumers_do_not_start_before_their_group_is_in_effect(server: Server) -> None:
    async with operator(server.url) as op:
        op.declare(a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.statuses)
        assert not op.cluster.workloads


async def test_consumers_can_be_suspended_while_their_group_is_not_in_effect(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, a_group(template=TEMPLATE))
        await until(lambda: GROUP.key in op.cluster.workloads)
        op.engine.remove(STREAM.key)
        await until(lambda: not op.cluster.ready(GROUP.key))
        assert op.cluster.workloads[GROUP.key].replicas == 1
        op.declare(a_group(template=TEMPLATE, suspend=True, meta={"generation": 2}))
        await until(lambda: op.cluster.workloads[GROUP.key].replicas == 0)


async def test_a_write_that_somebody_keeps_undoing_is_tried_ever_less_often(server: Server) -> None:
    undone = 0

    class Undone(Faulty):
        def __getattr__(self, name: str) -> Any:
            async def call(*args: Any) -> Any:
                nonlocal undone
                reply = await getattr(self._broker, name)(*args)
                if name == "apply" and type(args[0]).__name__ == "CreateStream":
                    undone += 1
                    with server.admin() as client:
                        client.delete(STREAM.stream_key)
                return reply

            return call

    async with operator(server.url, broker=Undone().around) as op:
        op.declare(STREAM)
        await until(lambda: undone >= 4)
        before = undone
        await asyncio.sleep(0.3)
        assert undone - before <= 3


async def test_an_operator_that_ends_at_the_moment_of_an_event_ends(server: Server) -> None:
    async with asyncio.timeout(10):
        async with operator(server.url, STREAM, complete=False) as op:
            await op.engine.idle()
            op.engine.listed()
