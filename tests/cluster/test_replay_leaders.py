"""Replays on Kubernetes: carried out by whoever leads, once, and shown by kubectl."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

from agentstream.protocol.keys import StreamKeys
from cluster.conftest import Deploy
from cluster.team import Json, Team
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_replay, a_stream

COUNT = 2_000


def key_of(team: Team) -> str:
    return f"{{{team.namespace}.tasks}}"


def keys(team: Team) -> StreamKeys:
    return StreamKeys(key_of(team))


def handled(admin: Any, team: Team) -> list[str]:
    """Adds messages that the group has read and acknowledged."""
    key = key_of(team)
    pipe = admin.pipeline(transaction=False)
    for _ in range(COUNT):
        message = {
            "v": 1, "id": str(uuid.uuid4()), "from": "planner", "to": "coder", "type": "task_request",
            "payload": {}, "timestamp": 1.0,
        }  # fmt: skip
        pipe.xadd(key, {"m": json.dumps(message)})
    ids = [str(entry) for entry in pipe.execute()]
    admin.xreadgroup("coder", "pod.1", {key: ">"}, count=COUNT, noack=True)
    return ids


def origins(admin: Any, team: Team) -> list[str]:
    return [json.loads(fields["x"])["origin"] for _, fields in admin.xrange(keys(team).retry("coder"))]


def phase(found: Json | None) -> str:
    return str((found or {}).get("status", {}).get("phase"))


async def test_when_the_leader_is_killed_the_next_one_goes_on_and_each_message_comes_once_more(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    first = deploy("agentstream-0")
    await first.leading()
    second = deploy("agentstream-1")
    stream, group = a_stream("tasks"), a_group("coder", streamRef={"name": "tasks"})
    own_team.create(stream, group)
    await own_team.ready(stream, group)
    admin: Any
    with private_server.admin() as admin:
        wanted = handled(admin, own_team)
        (made,) = own_team.create(
            a_replay(
                "again",
                **{"from": {"source": "Stream"}, "rate": 500, "window": COUNT + 1, "reason": "INC-1"},
            )
        )
        await until(lambda: len(origins(admin, own_team)) > 200)
        first.kill()
        there = len(origins(admin, own_team))
        assert there < COUNT
        await second.leading(deadline=40)
        done = await own_team.until(
            "StreamReplay", "again", lambda found: phase(found) in {"Complete", "Failed"}, timeout=60
        )
        assert phase(done) == "Complete", done
        assert done is not None
        assert (done["status"]["matched"], done["status"]["moved"]) == (COUNT, COUNT)
        assert Counter(origins(admin, own_team)) == Counter(wanted)
        assert origins(admin, own_team) == wanted
        table = own_team.kubectl("get", "sreplay")
        header, row = table.splitlines()
        assert header.split() == [
            "NAME",
            "GROUP",
            "SOURCE",
            "MATCHED",
            "MOVED",
            "HANDLED",
            "DEAD",
            "PHASE",
            "AGE",
        ]
        assert row.split()[:-1] == ["again", "coder", "Stream", str(COUNT), str(COUNT), "0", "0", "Complete"]
        events = {event["reason"]: event["message"] for event in own_team.list("Event")}
        assert "INC-1" in events["ReplayStarted"]
        assert f"{COUNT:,} of {COUNT:,}" in events["ReplayFinished"]
        # what the server knows of it goes with it
        name = keys(own_team).replay(f"again.{made['metadata']['uid'][:8]}")
        assert admin.exists(name)
        own_team.delete("StreamReplay", "again")
        await until(lambda: not admin.exists(name))
