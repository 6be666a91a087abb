"""What the operator makes of pods, on a real API server where the test is kubelet and controllers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import redis

from agentstream.agent import Agent
from agentstream.identity.settings import Settings
from agentstream.transport.endpoint import Endpoint
from cluster.team import Json, Team
from support.deployed import Deployed
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template

LEASE = 3_600_000
COST = "controller.kubernetes.io/pod-deletion-cost"
STARTED, ENDED, AGAIN = 1_767_225_600, 1_767_225_605, 1_767_225_607
"""When a container started, ended and started again, in seconds since 1970: early in 2026."""


def base36(number: int) -> str:
    """As the names of consumers end."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


OLD, NEW = base36(STARTED * 1000 + 300), base36(AGAIN * 1000 + 300)


def at(seconds: int) -> str:
    """A time as the API server has it."""
    return f"2026-01-01T00:00:{seconds - STARTED:02}Z"


class Group:
    """A group whose pods are the test's.

    Args:
        team: its namespace.
        name: its name, and its stream's.
        client: an administrator of the server.
    """

    def __init__(self, team: Team, name: str, client: redis.Redis) -> None:
        self.team, self.name, self.client = team, name, client
        self.key = f"{{{team.namespace}.{name}}}"

    async def declared(self, **spec: Any) -> Group:
        """Makes it."""
        template = {"template": a_template(), "startFrom": "Beginning", "delivery": {"lease": "1h"}, **spec}
        manifests = (
            a_stream(self.name, producers=["boss"]),
            a_group(self.name, streamRef={"name": self.name}, **template),
        )
        self.team.create(*manifests)
        await self.team.ready(*manifests)
        return self

    def pod(self, name: str, **status: Any) -> str:
        """Makes a pod. Returns its full name."""
        full = f"{self.name}-consumer-5d4f-{name}"
        labels = {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": self.name}
        self.team.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": full, "labels": labels},
                "spec": {"containers": [{"name": "a", "image": "a:1"}]},
            }
        )
        self.becomes(full, **(status or self.runs(STARTED)))
        return full

    def becomes(self, pod: str, **status: Any) -> None:
        """Says how a pod is now."""
        self.team.change("Pod", pod, {"status": {"phase": "Running", **status}}, "/status")

    def runs(self, since: int, last: Json | None = None) -> Json:
        """The status of a pod that runs since then."""
        return self._container({"running": {"startedAt": at(since)}}, last)

    def loops(self) -> Json:
        """The status of a pod whose container ended, and is not started again for now."""
        return self._container({"waiting": {"reason": "CrashLoopBackOff"}}, self.ended())

    def ends(self) -> Json:
        """The status of a pod whose container has just ended."""
        return self._container(self.ended())

    def ended(self) -> Json:
        """How its container ended."""
        return {"terminated": {"exitCode": 1, "startedAt": at(STARTED), "finishedAt": at(ENDED)}}

    def _container(self, state: Json, last: Json | None = None) -> Json:
        found = {"name": "a", "image": "a:1", "imageID": "", "ready": "running" in state, "restartCount": 0}
        return {"containerStatuses": [{**found, "state": state, "lastState": last or {}}]}

    def takes(self, consumer: str, count: int = 1) -> None:
        """Has a consumer hold so many new messages."""
        for _ in range(count):
            self.client.xadd(self.key, {"m": "{}"})
        self.client.xreadgroup(self.name, consumer, {self.key: ">"}, count=count)

    def claimable(self) -> set[str]:
        """The consumers whose messages anybody may claim, an hour before their leases end."""
        found = self.client.xpending_range(self.key, self.name, "-", "+", 1000, idle=LEASE)
        return {entry["consumer"] for entry in found}

    def costs(self) -> dict[str, str | None]:
        """What is said of the pods' deletion, by the last part of their names."""
        return {
            pod["metadata"]["name"].rpartition("-")[2]: pod["metadata"].get("annotations", {}).get(COST)
            for pod in self.team.list("Pod")
            if pod["metadata"]["labels"].get("agentstream.dev/group") == self.name
        }


@asynccontextmanager
async def a_team_with(team: Team, name: str, server: Server, **spec: Any) -> AsyncIterator[Group]:
    """A group that is in effect."""
    with server.admin() as client:
        yield await Group(team, name, client).declared(**spec)


async def test_of_a_container_that_was_started_again_the_old_ones_messages_are_free(
    team: Team, unique: str, shared_broker: Server
) -> None:
    async with a_team_with(team, unique, shared_broker) as group:
        pod, other = group.pod("aaaaa"), group.pod("bbbbb")
        for consumer in (f"{pod}.{OLD}", f"{pod}.{NEW}", f"{other}.{OLD}"):
            group.takes(consumer)
        group.becomes(pod, **group.runs(AGAIN, group.ended()))
        await until(lambda: group.claimable() == {f"{pod}.{OLD}"})


async def test_whoever_was_started_in_the_second_of_an_end_keeps_its_messages(
    team: Team, unique: str, shared_broker: Server
) -> None:
    async with a_team_with(team, unique, shared_broker) as group:
        pod = group.pod("aaaaa")
        # it is at work by the time that the end of the one before is told of
        following = f"{pod}.{base36(ENDED * 1000 + 900)}"
        for consumer in (f"{pod}.{OLD}", following):
            group.takes(consumer)
        group.becomes(pod, **group.ends())
        await until(lambda: group.claimable() == {f"{pod}.{OLD}"})
        group.becomes(pod, **group.runs(AGAIN, group.ended()))
        await until(lambda: group.claimable() == {f"{pod}.{OLD}", following})


async def test_what_a_container_held_that_crashes_again_and_again_is_free(
    team: Team, unique: str, shared_broker: Server
) -> None:
    async with a_team_with(team, unique, shared_broker) as group:
        pod = group.pod("aaaaa")
        group.takes(f"{pod}.{OLD}", 3)
        group.becomes(pod, **group.loops())
        await until(lambda: group.claimable() == {f"{pod}.{OLD}"})


async def test_what_an_evicted_pod_held_is_free(team: Team, unique: str, shared_broker: Server) -> None:
    async with a_team_with(team, unique, shared_broker) as group:
        pod = group.pod("aaaaa")
        group.takes(f"{pod}.{OLD}")
        group.becomes(pod, phase="Failed", reason="Evicted")
        await until(lambda: group.claimable() == {f"{pod}.{OLD}"})


async def test_live_consumers_have_what_a_force_deleted_pod_held(
    team: Team, unique: str, shared_broker: Server
) -> None:
    settings = {"namespace": team.namespace, "source": Endpoint(shared_broker.url)}
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(a_team_with(team, unique, shared_broker))
        boss = await stack.enter_async_context(Agent.connect(Settings(agent="boss", pod="boss", **settings)))
        sending = (boss.send_message(to=unique, type="event", payload={"n": n}) for n in range(1000))
        await asyncio.gather(*sending)
        gone = group.pod("aaaaa")
        group.client.xreadgroup(unique, f"{gone}.{OLD}", {group.key: ">"}, count=1000)

        async def hold(pod: str) -> None:
            agent = Agent.connect(Settings(agent=unique, pod=pod, **settings))
            async with agent:
                in_hand = [delivery async for delivery in agent.stream_consume(unique, concurrency=128)]
            del in_hand

        holding = [asyncio.create_task(hold(group.pod(f"live{n}"))) for n in range(10)]
        stack.push_async_callback(asyncio.gather, *holding, return_exceptions=True)
        for task in holding:
            stack.callback(task.cancel)
        await until(lambda: len(group.client.xinfo_consumers(group.key, unique)) == 11)
        team.kubectl("delete", "pod", gone, "--force", "--grace-period=0")

        def owners() -> set[str]:
            pending = group.client.xpending(group.key, unique)
            assert pending["pending"] == 1000
            return {consumer["name"].partition(".")[0] for consumer in pending["consumers"]}

        await until(lambda: gone not in owners())


async def test_before_there_are_fewer_pods_the_idle_ones_are_said_to_cost_the_least(
    operator: Deployed, team: Team, unique: str, shared_broker: Server
) -> None:
    async with a_team_with(team, unique, shared_broker, replicas=3) as group:
        busy, _, full = (group.pod(name) for name in ("busyx", "idlex", "fullx"))
        group.takes(f"{busy}.{OLD}", 1)
        group.takes(f"{full}.{OLD}", 5)
        before = team.server.position
        await scaled(group, 2)
        assert group.costs() == {"busyx": "1", "idlex": None, "fullx": "3"}
        written = [r for r in operator.writes(before) if r.resource in ("pods", "deployments")]
        assert [r.resource for r in written if unique in r.name] == ["pods", "pods", "deployments"]
        # nothing is written of what costs as much as before
        group.takes(f"{full}.{OLD}", 2)
        group.client.xack(group.key, unique, *pending(group, busy))
        before = team.server.position
        await scaled(group, 1)
        assert group.costs() == {"busyx": "0", "idlex": None, "fullx": "3"}
        assert [r.name for r in operator.writes(before) if r.resource == "pods"] == [busy]


async def test_while_an_autoscaler_may_have_fewer_pods_what_they_hold_is_kept_up_to_date(
    operator: Deployed, team: Team, unique: str, shared_broker: Server
) -> None:
    scaling = {"mode": "HPA", "targetBacklog": 10, "maxReplicas": 5, "scaleDownAfter": "1h"}
    async with a_team_with(team, unique, shared_broker, autoscaling=scaling) as group:
        name = f"{unique}-consumer"
        await team.there("HorizontalPodAutoscaler", name)
        busy, _, full = (group.pod(pod) for pod in ("busyx", "idlex", "fullx"))
        group.takes(f"{busy}.{OLD}", 1)
        group.takes(f"{full}.{OLD}", 5)
        await team.until(
            "Deployment", name, lambda found: found is not None and found["spec"]["replicas"] == 1
        )
        before = team.server.position
        # the autoscaler's own write is the test's
        team.change("Deployment", name, {"spec": {"replicas": 3}}, "/scale")
        await until(lambda: group.costs() == {"busyx": "1", "idlex": None, "fullx": "3"}, timeout=20)
        # nothing is written of what costs as much as before
        group.takes(f"{full}.{OLD}", 2)
        group.client.xack(group.key, unique, *pending(group, busy))
        await until(lambda: group.costs() == {"busyx": "0", "idlex": None, "fullx": "3"}, timeout=20)
        written = [r.name for r in operator.writes(before) if r.resource == "pods" and unique in r.name]
        assert sorted(written) == sorted([busy, full, busy])
        assert team.get("Deployment", name)["spec"]["replicas"] == 3


async def scaled(group: Group, replicas: int) -> None:
    """Wants so many consumers, and waits until the Deployment does."""
    group.team.change("ConsumerGroup", group.name, {"spec": {"replicas": replicas}})
    await group.team.until(
        "Deployment",
        f"{group.name}-consumer",
        lambda found: found is not None and found["spec"]["replicas"] == replicas,
    )


def pending(group: Group, pod: str) -> list[str]:
    """The entries that a pod's first process holds."""
    found = group.client.xpending_range(group.key, group.name, "-", "+", 1000, consumername=f"{pod}.{OLD}")
    return [entry["message_id"] for entry in found]
