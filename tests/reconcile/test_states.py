"""Whatever is edited, lost or interrupted: reconciling always converges, and then writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any

import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from agentstream.protocol.keys import StreamKeys, default_stream_key, routes_key, user_name
from agentstream.protocol.routes import decode_route
from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals, StatusIntervals
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import PAUSED_ANNOTATION, ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.cluster import MemoryCluster
from support.crashing import BROKER_WRITES, CLUSTER_WRITES, Crashing, Fuse
from support.declared import Declared
from support.resources import TEMPLATE, a_group, a_stream
from support.servers import Server

SHARED = "{shared}"
OPTIONS = EngineOptions(
    allowed_keys=(SHARED,),
    loops=LoopIntervals(measure=0.01, janitor=0.02, access=0.02, resync=3600),
    status=StatusIntervals(numbers=0.0, transient=0.0),
)
NAMES = st.sampled_from(["a", "b"])
NAMESPACES = st.sampled_from(["one", "two"])
AGENTS = st.lists(st.sampled_from(["p", "q", "a"]), unique=True, max_size=2)
Resource = AgentStream | ConsumerGroup


class Reconciling(RuleBasedStateMachine):
    """One server, one cluster, and an operator that is killed now and then."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.server.clear()
        self.redis = self.server.admin()
        self.runner = asyncio.Runner()
        self.cluster = MemoryCluster()
        self.declared = Declared()
        self.resources = self.declared.resources
        self.expected: dict[tuple[str, str], set[str]] = {}
        self.age = 1000
        self.start(Fuse())

    def start(self, fuse: Fuse) -> None:
        """A new operator, which knows what the cluster has stored."""
        self.fuse = fuse
        broker = self.runner.run(Broker.connect(self.server.url, installation="agentstream"))
        self.broker = broker
        self.engine = Engine(
            Crashing(broker, fuse, BROKER_WRITES),  # type: ignore[arg-type]
            Crashing(self.cluster, fuse, CLUSTER_WRITES),  # type: ignore[arg-type]
            OPTIONS,
            random=lambda: 0.0,
        )
        for resource in self.resources.values():
            self.engine.put(self.cluster.as_stored(resource))
        self.engine.listed()

    def stop(self) -> None:
        self.runner.run(self.broker.close())

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.stop()
            self.runner.close()
            self.redis.close()

    # edits

    def put(self, resource: Resource) -> None:
        self.resources[resource.key] = resource
        self.engine.put(self.cluster.as_stored(resource))

    def born(self, key: ResourceKey) -> int:
        """The age of a resource: that of the present one, or younger than all others."""
        if key not in self.resources:
            self.age -= 1
            return self.age
        created = self.resources[key].metadata.creation_timestamp
        assert created is not None
        return int((datetime(2026, 1, 1, tzinfo=UTC) - created).total_seconds())

    @rule(
        namespace=NAMESPACES,
        name=NAMES,
        shared=st.booleans(),
        producers=AGENTS,
        policy=st.sampled_from(["Retain", "Delete", "DeleteIfEmpty"]),
        management=st.sampled_from(["Managed", "Managed", "ObserveOnly"]),
        paused=st.sampled_from([False, False, True]),
    )
    def put_stream(
        self,
        *,
        namespace: str,
        name: str,
        shared: bool,
        producers: list[str],
        policy: str,
        management: str,
        paused: bool,
    ) -> None:
        key = ResourceKey("AgentStream", namespace, name)
        present = self.resources.get(key)
        spec: dict[str, Any] = {"key": SHARED} if shared else {}
        if isinstance(present, AgentStream):
            if present.deleting:
                return
            spec = {"key": present.spec.key} if present.spec.key else {}
        self.put(
            a_stream(
                name,
                namespace,
                age=self.born(key),
                annotations={PAUSED_ANNOTATION: "true"} if paused else {},
                producers=producers,
                deletionPolicy=policy,
                managementPolicy=management,
                **spec,
            )
        )

    @rule(
        namespace=NAMESPACES,
        name=NAMES,
        stream=NAMES,
        group=st.sampled_from([None, "g"]),
        policy=st.sampled_from(["Retain", "Delete"]),
        lease=st.sampled_from(["10s", "20s"]),
        workload=st.booleans(),
        paused=st.sampled_from([False, False, True]),
    )
    def put_group(
        self,
        *,
        namespace: str,
        name: str,
        stream: str,
        group: str | None,
        policy: str,
        lease: str,
        workload: bool,
        paused: bool,
    ) -> None:
        key = ResourceKey("ConsumerGroup", namespace, name)
        present = self.resources.get(key)
        if isinstance(present, ConsumerGroup):
            if present.deleting:
                return
            stream, group = present.spec.stream_ref.name, present.spec.group
        self.put(
            a_group(
                name,
                namespace,
                stream=stream,
                age=self.born(key),
                annotations={PAUSED_ANNOTATION: "true"} if paused else {},
                deletionPolicy=policy,
                delivery={"lease": lease},
                **({"group": group} if group else {}),
                **({"template": TEMPLATE} if workload else {}),
            )
        )

    @precondition(lambda self: self.resources)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.resources)))
        resource = self.resources[key]
        if key not in self.cluster.finalizers:
            self.gone(key)
            return
        metadata = resource.metadata.model_copy(update={"deletion_timestamp": datetime.now(UTC)})
        self.put(resource.model_copy(update={"metadata": metadata}))

    def gone(self, key: ResourceKey) -> None:
        """The API server removes a resource."""
        del self.resources[key]
        self.cluster.forget(key)
        self.engine.remove(key)

    # losses

    @rule()
    def flush(self) -> None:
        self.redis.flushall()
        self.expected.clear()

    @rule(namespace=NAMESPACES, name=NAMES)
    def delete_key(self, namespace: str, name: str) -> None:
        key = default_stream_key(namespace, name)
        self.redis.delete(key)
        self.expected = {place: ids for place, ids in self.expected.items() if place[0] != key}

    @rule(namespace=NAMESPACES, name=NAMES, group=st.sampled_from(["a", "b", "g"]))
    def destroy_group(self, namespace: str, name: str, group: str) -> None:
        keys = StreamKeys(default_stream_key(namespace, name))
        for key in (keys.stream, keys.retry(group)):
            with contextlib.suppress(redis.ResponseError):
                self.redis.xgroup_destroy(key, group)

    @rule(namespace=NAMESPACES, agent=st.sampled_from(["p", "q", "a", "b"]), how=st.integers(0, 2))
    def lose_access(self, namespace: str, agent: str, how: int) -> None:
        user = user_name("agentstream", namespace, agent)
        if how == 0:
            self.redis.acl_deluser(user)
        elif how == 1 and user in self.redis.acl_users():
            self.redis.execute_command("ACL", "SETUSER", user, "+flushall")
        else:
            self.redis.hdel(routes_key("agentstream", namespace), agent)

    @rule()
    def lose_all_users_and_functions(self) -> None:
        users = [name for name in self.redis.acl_users() if name != "default"]
        if users:
            self.redis.acl_deluser(*users)
        self.redis.execute_command("FUNCTION", "FLUSH")

    @rule(namespace=NAMESPACES, agent=st.sampled_from(["p", "q", "a", "b"]))
    def lose_secret(self, namespace: str, agent: str) -> None:
        self.cluster.secrets.pop((namespace, agent), None)

    @rule(namespace=NAMESPACES, name=NAMES)
    def send(self, namespace: str, name: str) -> None:
        key = default_stream_key(namespace, name)
        if self.redis.type(key) != "stream":
            return
        entry = self.redis.xadd(key, {"m": "{}"})
        for group in self.redis.xinfo_groups(key):
            self.expected.setdefault((key, group["name"]), set()).add(str(entry))

    # the operator

    @rule(writes=st.integers(0, 12))
    def crash(self, writes: int) -> None:
        """Works until so many writes were made, and is then killed; another one starts."""
        self.fuse.left = writes
        self.runner.run(self.work())
        self.stop()
        self.start(Fuse())

    @rule()
    def settle(self) -> None:
        """Converges, then writes nothing; everything is as it is declared."""
        self.runner.run(self.work())
        before = self.footprint()
        self.runner.run(self.work())
        assert self.footprint() == before
        self.check()

    async def work(self) -> None:
        """Lets the operator work until there is nothing left to do, or it was killed."""
        running = asyncio.create_task(self.engine.run())
        try:
            async with asyncio.timeout(10):
                quiet = 0
                # twice, since what the last one did may have consequences
                while quiet < 2 and not self.fuse.blown:
                    before = self.footprint()
                    self.engine.check_all()
                    await self.reach_idle()
                    await self.engine._janitor.clean(tuple(self.engine._state.resources.streams.values()))
                    removed = self.remove_deleted()
                    failing = bool(self.engine._queue._failures)
                    quiet = 0 if failing or removed or self.footprint() != before else quiet + 1
                    if failing:
                        await asyncio.sleep(0.02)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def reach_idle(self) -> None:
        idle = asyncio.create_task(self.engine.idle())
        while not idle.done() and not self.fuse.blown:
            await asyncio.wait((idle,), timeout=0.01)
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)

    def remove_deleted(self) -> bool:
        """Does what the API server does with deleted resources that carry no finalizer any more."""
        deleted = [
            key for key, r in self.resources.items() if r.deleting and key not in self.cluster.finalizers
        ]
        for key in deleted:
            self.gone(key)
        return bool(deleted)

    def footprint(self) -> tuple[object, ...]:
        """Changes whenever anything was written to the server or the cluster."""
        stats = self.redis.info("commandstats")
        users = tuple(stats.get(f"cmdstat_acl|{c}", {"calls": 0})["calls"] for c in ("setuser", "deluser"))
        changes = self.redis.info("persistence")["rdb_changes_since_last_save"]
        return (changes, users, tuple(sorted(self.cluster.writes.items())))

    # what must hold

    def check(self) -> None:
        for stream in self.declared.streams:
            self.check_stream(stream)
        for group in self.declared.groups:
            if self.declared.serves(group):
                self.check_group(group)
        for namespace in ("one", "two"):
            for agent in ("p", "q", "a", "b"):
                self.check_agent(namespace, agent)
        for (key, group), entries in self.expected.items():
            self.check_nothing_skipped(key, group, entries)

    def check_stream(self, stream: AgentStream) -> None:
        if stream.deleting:
            assert stream.paused, "only what is paused may hold a deletion"
        elif not self.declared.has_key(stream):
            condition = self.cluster.condition(stream.key, ConditionType.CONFLICT)
            assert condition is not None
            assert condition.reason is ConditionReason.KEY_CLAIMED
        elif self.declared.takes_effect(stream):
            assert self.redis.type(stream.stream_key) == "stream"
            assert self.redis.hget(StreamKeys(stream.stream_key).meta, "name") == stream.metadata.name
            assert self.cluster.ready(stream.key), self.cluster.statuses[stream.key]

    def check_group(self, group: ConsumerGroup) -> None:
        stream = self.declared.stream_of(group)
        assert isinstance(stream, AgentStream)
        for key in (stream.stream_key, StreamKeys(stream.stream_key).retry(group.group_name)):
            assert group.group_name in {found["name"] for found in self.redis.xinfo_groups(key)}
        assert self.cluster.ready(group.key), self.cluster.statuses[group.key]
        assert (group.key in self.cluster.workloads) == (group.spec.template is not None)

    def check_agent(self, namespace: str, agent: str) -> None:
        user = user_name("agentstream", namespace, agent)
        naming = self.declared.naming(namespace, agent)
        if not naming:
            assert self.redis.acl_getuser(user) is None
            assert (namespace, agent) not in self.cluster.secrets
            return
        streams = [r for r in naming if isinstance(r, AgentStream) and self.declared.takes_effect(r)]
        groups = [r for r in naming if isinstance(r, ConsumerGroup) and self.declared.serves(r)]
        if not streams and not groups:
            return
        secret = self.cluster.secrets[namespace, agent]
        with redis.Redis(port=self.server.port, username=secret.username, password=secret.password) as login:
            field = login.hget(routes_key("agentstream", namespace), agent)
        assert isinstance(field, bytes)
        route = decode_route(field)
        assert {stream.metadata.name for stream in streams} <= {p.stream for p in route.produces}
        assert {group.group_name for group in groups} <= {c.group for c in route.consumes}
        assert all(self.may_add(user, stream.stream_key) for stream in streams)
        shared = [r for r in naming if isinstance(r, AgentStream) and r.stream_key == SHARED]
        if not any(self.declared.has_key(stream) for stream in shared):
            assert not self.may_add(user, SHARED)

    def may_add(self, user: str, key: str) -> bool:
        reply = self.redis.execute_command("ACL", "DRYRUN", user, "XADD", key, "*", "m", "1")
        return reply == "OK"

    def check_nothing_skipped(self, key: str, group: str, entries: set[str]) -> None:
        """What was added while a group was there is still to be delivered, if the group is there."""
        if self.redis.type(key) != "stream":
            return
        for found in self.redis.xinfo_groups(key):
            if found["name"] == group:
                last = found["last-delivered-id"]
                waiting = {entry for entry, _ in self.redis.xrange(key, f"({last}", "+")}
                assert entries <= waiting


def test_reconciling_always_converges_and_then_writes_nothing(server: Server) -> None:
    Reconciling.server = server
    # a failing run is not shrunk: each step talks to a real server, and would be repeated for minutes
    bounds = settings(max_examples=50, stateful_step_count=20, phases=[Phase.reuse, Phase.generate])
    run_state_machine_as_test(Reconciling, settings=bounds)


def test_a_group_whose_stream_nobody_makes_keeps_its_agent_from_nothing(server: Server) -> None:
    Reconciling.server = server
    state = Reconciling()
    try:
        at = {"paused": False, "policy": "Retain"}
        shared = {**at, "name": "b", "producers": [], "shared": True}
        state.put_stream(management="ObserveOnly", namespace="one", **shared)
        state.put_stream(management="Managed", namespace="two", **shared)
        state.put_group(name="a", namespace="two", group="g", lease="10s", stream="b", workload=False, **at)
        of_its_own = {"name": "a", "producers": ["a"], "shared": False}
        state.put_stream(management="Managed", namespace="two", **at, **of_its_own)
        state.settle()
    finally:
        state.teardown()
