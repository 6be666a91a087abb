"""The rights that the chart gives the operator: enough for everything it does, and none without need."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cluster.conftest import Deploy
from cluster.team import Json, Team
from support.apiserver import ApiServer
from support.deployed import Deployed, grant
from support.servers import Server
from unit.resources.manifests import a_group, a_replay, a_stream, a_template

NEEDED_OTHERWISE = {
    # applying may make an object, and the API server asks about it
    ("create", "deployments"),
    ("create", "horizontalpodautoscalers"),
    # only if a list shows one that no event told of
    ("get", "streamreplays"),
}


def rights(team: Team) -> set[tuple[str, str]]:
    """Verb and resource of everything that the operator may do in its namespace."""
    roles = team.kubectl.list("roles.rbac.authorization.k8s.io")
    return {
        (verb, resource)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def used(operator: Deployed) -> set[tuple[str, str]]:
    """Verb and resource of everything that it asked for; not what everybody may."""
    return {(r.verb, r.resource) for r in operator.requests() if not r.resource.startswith("/")}


async def test_every_right_is_needed(deploy: Deploy, own_team: Team, private_server: Server) -> None:
    operator = deploy()
    await operator.leading()
    # something of everything: a finalizer, a Secret, a Deployment of ours and of others, and their end
    stranger = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "agentstream-stranger"}}
    own_team.create(
        stranger,
        a_deployment("theirs"),
        a_stream(deletionPolicy="Delete", producers=["boss"]),
        a_stream("other", producers=["stranger"]),
        a_group(template=a_template(), replicas=2, startFrom="Beginning", deletionPolicy="Delete"),
        a_group("elsewhere", deploymentRef={"name": "theirs"}, replicas=3),
        a_group("scaled", template=a_template(), autoscaling={"mode": "HPA"}),
        a_replay(groupRef={"name": "nobody"}),
        a_replay("counted", dryRun=True, ttlSecondsAfterFinished=0),
    )
    await own_team.gone("StreamReplay", "counted")
    await own_team.says("StreamReplay", "again", "False", "GroupNotFound")
    await own_team.ready(a_stream(), a_group(), a_group("elsewhere"))
    # an owner more of a Secret, and an event
    own_team.create(a_stream("second", producers=["boss"]))
    secret = "agentstream-boss"
    await own_team.until("Secret", secret, lambda found: len(found["metadata"]["ownerReferences"]) == 2)
    own_team.create(a_stream("usurper", key=f"{{{own_team.namespace}.tasks}}"))
    await own_team.says("AgentStream", "usurper", "False", "KeyClaimed")
    await own_team.says("AgentStream", "other", "False", "ChildNotOurs")
    await own_team.until("Deployment", "theirs", lambda found: found["spec"]["replicas"] == 3)
    # an autoscaler, and its end
    await own_team.there("HorizontalPodAutoscaler", "scaled-consumer")
    own_team.change("ConsumerGroup", "scaled", {"spec": {"autoscaling": {"mode": "Direct"}}})
    await own_team.gone("HorizontalPodAutoscaler", "scaled-consumer")
    # a pod that holds something, before there are fewer
    labels = {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": "coder"}
    pod = {"name": "coder-consumer-5d4f-x7k2p", "labels": labels}
    container = {"name": "a", "image": "a:1"}
    own_team.create({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {"containers": [container]}})
    with private_server.admin() as client:
        client.xadd(key := f"{{{own_team.namespace}.tasks}}", {"m": "{}"})
        client.xreadgroup("coder", f"{pod['name']}.1", {key: ">"})
    own_team.change("ConsumerGroup", "coder", {"spec": {"replicas": 1}})
    await own_team.until("Deployment", "coder-consumer", lambda found: found["spec"]["replicas"] == 1)
    own_team.delete("ConsumerGroup", "coder")
    own_team.delete("AgentStream", "tasks")
    await own_team.gone("ConsumerGroup", "coder")
    await own_team.gone("AgentStream", "tasks")
    own_team.delete("AgentStream", "second")
    await own_team.gone("Secret", secret)
    assert operator.stop() == 0
    assert used(operator) - rights(own_team) == set()
    assert rights(own_team) - used(operator) <= NEEDED_OTHERWISE


def a_deployment(name: str) -> Json:
    """Somebody's Deployment."""
    labels = {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": pod},
    }


async def test_for_the_whole_cluster_and_through_a_restart_of_the_api_server(
    own_api_server: ApiServer, private_server: Server, tmp_path: Path
) -> None:
    server, home = own_api_server, "agentstream-system"
    teams = [Team(server, name) for name in ("a", "b")]
    for name in (home, *(team.namespace for team in teams)):
        server.create_namespace(name)
    operator = Deployed(server, grant(server, home, ()), private_server.url, tmp_path)
    operator.start()
    try:
        await operator.leading()
        for team in teams:
            team.create(a_stream(), a_group())
            await team.ready(a_stream(), a_group())
        assert operator.complaints() == []
        assert operator.process is not None
        # away for longer than the Lease is kept: the operator ends, and is started again
        server.kill()
        assert await asyncio.to_thread(operator.process.wait, 60) == 1
        assert "lost the Lease" in operator.log
        server.start()
        teams[0].create(a_stream("late"))
        operator.start(long_lease=True)
        await teams[0].ready(a_stream("late"), timeout=60)
        # away for less, however long this machine takes: the operator goes on
        server.restart()
        teams[0].create(a_stream("new"))
        await teams[0].ready(a_stream("new"), timeout=60)
        # a server that has just started refuses for a moment what it does not know yet; that is survived
        assert operator.process.poll() is None
    finally:
        operator.kill()
