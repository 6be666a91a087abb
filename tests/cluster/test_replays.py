"""Replays on a real API server and a real broker: begun, told about, held, ended, and never done twice."""

from __future__ import annotations

import json
import uuid
from typing import Any

import redis

from cluster.conftest import Deploy
from cluster.team import Json, Team
from support.deployed import Deployed
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_replay, a_stream


class Queue:
    """A stream with a group of the same name, which nobody but the test consumes.

    Attributes:
        team: its namespace.
        name: of both.
        key: of the stream.
    """

    def __init__(self, team: Team, name: str, client: redis.Redis) -> None:
        self.team, self.name, self.client = team, name, client
        self.key = f"{{{team.namespace}.{name}}}"

    async def make(self) -> None:
        resources = a_stream(self.name), a_group(self.name, streamRef={"name": self.name})
        self.team.create(*resources)
        await self.team.ready(*resources)

    def handle(self, count: int) -> None:
        """Messages are sent, and the group acknowledges them."""
        for _ in range(count):
            message = {"v": 1, "id": str(uuid.uuid4()), "from": "boss", "to": self.name, "type": "event"}
            self.client.xadd(self.key, {"m": json.dumps({**message, "payload": {}, "timestamp": 0})})
        ((_, entries),) = self.client.xreadgroup(self.name, "c", {self.key: ">"}, count)
        self.client.xack(self.key, self.name, *(entry for entry, _ in entries))

    def ask(self, replay: str, **spec: Any) -> None:
        """A replay of the group is created."""
        self.team.create(a_replay(replay, groupRef={"name": self.name}, **spec))

    def status(self, replay: str) -> Json:
        """The status of a replay; empty without one."""
        found = self.team.get("StreamReplay", replay) or {}
        status: Json = found.get("status", {})
        return status

    @property
    def retries(self) -> list[str]:
        """The messages that wait for the group again."""
        return [
            json.loads(fields["m"])["id"] for _, fields in self.client.xrange(f"{self.key}:retry:{self.name}")
        ]

    @property
    def remembered(self) -> list[str]:
        """The keys in which the server remembers replays."""
        return list(self.client.scan_iter(f"{self.key}:replay:*"))


async def test_what_was_handled_is_delivered_once_more_and_everybody_sees_it(
    operator: Deployed, team: Team, unique: str, shared_broker: Server
) -> None:
    before = team.server.position
    with shared_broker.admin() as client:
        queue = Queue(team, unique, client)
        await queue.make()
        queue.handle(3)
        queue.ask(unique, reason="INC-4711")
        team.kubectl("wait", "--for=condition=Complete", "--timeout=20s", f"streamreplays/{unique}")
        assert len(queue.retries) == len(set(queue.retries)) == 3
    row = team.kubectl("get", "streamreplays", unique, "--no-headers", "-o", "wide").split()
    assert row[:8] == [unique, unique, "Stream", "3", "3", "0", "0", "Complete"]
    assert row[9] == "ReplayFinished"
    told = [e for e in team.list("Event") if e["involvedObject"]["name"] == unique]
    told = [event for event in told if event["involvedObject"]["kind"] == "StreamReplay"]
    assert {event["reason"] for event in told} == {"ReplayStarted", "ReplayFinished"}
    assert all("INC-4711" in event["message"] for event in told)
    # the beginning, the end, and what was handled since
    written = [r for r in operator.writes(before) if (r.resource, r.name) == ("streamreplays/status", unique)]
    assert 1 <= len(written) <= 4


async def test_a_dry_run_moves_nothing_and_goes_when_its_time_is_over(
    team: Team, unique: str, shared_broker: Server
) -> None:
    with shared_broker.admin() as client:
        queue = Queue(team, unique, client)
        await queue.make()
        queue.handle(3)
        queue.ask(unique, dryRun=True)
        await team.says("StreamReplay", unique, "True", "DryRunFinished", "Complete")
        assert queue.status(unique)["matched"] == 3
        assert queue.retries == []
        team.change("StreamReplay", unique, {"spec": {"ttlSecondsAfterFinished": 0}})
        await team.gone("StreamReplay", unique)


async def test_a_replay_waits_for_its_group(team: Team, unique: str, shared_broker: Server) -> None:
    with shared_broker.admin() as client:
        queue = Queue(team, unique, client)
        queue.ask(unique)
        message = await team.says("StreamReplay", unique, "False", "GroupNotFound")
        assert unique in message
        await queue.make()
        await team.says("StreamReplay", unique, "True", "NothingMatched", "Complete")


async def test_a_replay_can_be_held_and_its_pace_be_changed(
    team: Team, unique: str, shared_broker: Server
) -> None:
    with shared_broker.admin() as client:
        queue = Queue(team, unique, client)
        await queue.make()
        queue.handle(50)
        queue.ask(unique, rate=1, window=1, suspend=True)
        await team.says("StreamReplay", unique, "True", "Suspended", "Suspended")
        assert queue.retries == []
        team.change("StreamReplay", unique, {"spec": {"suspend": False}})
        await team.says("StreamReplay", unique, "True", "WindowFull")
        assert len(queue.retries) == 1
        team.change("StreamReplay", unique, {"spec": {"window": 100}})
        await until(lambda: len(queue.retries) > 1)
        # one in a second would take the better part of a minute
        team.change("StreamReplay", unique, {"spec": {"rate": 1_000}})
        await team.says("StreamReplay", unique, "True", "ReplayFinished", "Complete")
        assert len(queue.retries) == 50


async def test_one_replay_of_a_group_waits_for_another_and_a_deleted_one_ends(
    team: Team, unique: str, shared_broker: Server
) -> None:
    first, second = f"{unique}-first", f"{unique}-second"
    with shared_broker.admin() as client:
        queue = Queue(team, unique, client)
        await queue.make()
        queue.handle(20)
        queue.ask(first, rate=1)
        await until(lambda: len(queue.retries) >= 2)
        queue.ask(second, limit=1, rate=1_000)
        message = await team.says("StreamReplay", second, "False", "WaitingForReplay")
        assert first in message
        team.delete("StreamReplay", first)
        await team.says("StreamReplay", second, "True", "ReplayFinished", "Complete")
        assert len(queue.retries) < 20
        # the server forgets the one that is gone
        await until(lambda: not [key for key in queue.remembered if first in key])


async def test_whoever_takes_over_goes_on_where_a_killed_operator_was(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    operator = deploy()
    await operator.leading()
    with private_server.admin() as client:
        queue = Queue(own_team, "tasks", client)
        await queue.make()
        queue.handle(60)
        queue.ask("again", rate=20)
        await until(lambda: len(queue.retries) > 10)
        operator.kill()
        assert len(queue.retries) < 60
        await deploy("agentstream-1").leading()
        await own_team.says("StreamReplay", "again", "True", "ReplayFinished", "Complete", timeout=60)
        assert len(queue.retries) == len(set(queue.retries)) == 60
        assert queue.status("again")["moved"] == 60
