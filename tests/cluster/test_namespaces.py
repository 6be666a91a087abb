"""What a namespace left behind is not handed to the next one of its name, on a real API server."""

from __future__ import annotations

import redis

from cluster.conftest import Deploy
from cluster.team import Team
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_stream


async def test_a_stream_of_a_former_namespace_waits_for_the_administrator(
    own_team: Team, deploy: Deploy, private_server: Server
) -> None:
    name = own_team.namespace
    key = f"{{{name}.tasks}}"
    uid = own_team.kubectl.get("namespace", name)["metadata"]["uid"]
    with redis.Redis(port=private_server.port, decode_responses=True) as admin:
        # namespaces are not deleted here, for want of a controller
        for number in range(3):
            admin.xadd(key, {"m": str(number)})
        former = {"installation": "agentstream", "namespace": name, "name": "tasks", "uid": "1"}
        admin.hset(f"{key}:meta", mapping={**former, "namespace_uid": "gone"})
        deploy()
        own_team.create(a_stream(producers=["planner"]))
        message = await own_team.says("AgentStream", "tasks", "False", "KeyOfFormerNamespace")
        assert message == (
            f"{key} holds 3 messages of a former namespace {name}: annotate the namespace {name} with"
            " agentstream.dev/adopt=true to take them over, or choose another key"
        )
        assert f"agentstream.{name}.planner" not in str(admin.execute_command("ACL", "LIST")) or (
            admin.execute_command("ACL", "DRYRUN", f"agentstream.{name}.planner", "XLEN", key) != "OK"
        )

        own_team.kubectl("annotate", "namespace", name, "agentstream.dev/adopt=true")
        await own_team.says("AgentStream", "tasks", "True", "Ready", timeout=30)
        await until(lambda: admin.hget(f"{key}:meta", "namespace_uid") == uid)
        assert admin.xlen(key) == 3
        messages = [event["message"] for event in own_team.list("Event")]
        assert f"resumed the stream {key} with 3 messages" in messages
