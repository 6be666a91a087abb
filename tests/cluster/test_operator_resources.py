"""What the operator makes of resources on a real API server, with the rights that the chart gives it."""

from __future__ import annotations

import base64
from typing import Any

import redis

from cluster.team import Json, Team, said
from support.deployed import Deployed
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template


def entries(secret: Json) -> dict[str, str]:
    """What a Secret says."""
    return {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}


def owners(found: Json) -> set[tuple[str, str]]:
    """Kind and name of the owners of an object."""
    return {(owner["kind"], owner["name"]) for owner in found["metadata"]["ownerReferences"]}


async def test_resources_become_ready_and_people_see_it(
    operator: Deployed, team: Team, unique: str, shared_broker: Server
) -> None:
    before = team.server.position
    stream, group = a_stream(unique, producers=["boss"]), a_group(unique, streamRef={"name": unique})
    said_so = team.kubectl.apply(stream, group)
    assert said_so.count(" created\n") == 2
    team.kubectl("wait", "--for=condition=Ready", "--timeout=20s", f"astream/{unique}", f"cgroup/{unique}")
    # numbers are half a minute old at most: the first look at the server may have been before the group
    expected = [unique, f"{{{team.namespace}.{unique}}}", "0", "1", "True", "Ready"]
    await until(
        lambda: team.kubectl("get", "agentstreams", unique, "--no-headers").split()[:-1] == expected,
        timeout=40,
    )
    row = team.kubectl("get", "consumergroups", unique, "--no-headers").split()
    assert row[:-1] == [unique, unique, unique, "0", "0", "0", "True", "Ready"]
    with shared_broker.admin() as client:
        (found,) = client.xinfo_groups(f"{{{team.namespace}.{unique}}}")
    assert found["name"] == unique
    # nobody needs to be told of the ordinary
    assert [r for r in operator.writes(before) if r.resource == "events"] == []


async def test_an_agents_secret_says_all_that_it_needs(
    team: Team, unique: str, shared_broker: Server
) -> None:
    resources = (a_stream(unique, producers=[unique]), a_group(unique, streamRef={"name": unique}))
    team.create(*resources)
    await team.ready(*resources)
    secret = await team.there("Secret", f"agentstream-{unique}")
    said_there = entries(secret)
    password = said_there.pop("password")
    assert said_there == {
        "type": "redis",
        "provider": "agentstream",
        "uri": shared_broker.url,
        "host": "127.0.0.1",
        "port": str(shared_broker.port),
        "username": f"agentstream.{team.namespace}.{unique}",
        "namespace": team.namespace,
        "agent": unique,
        "installation": "agentstream",
    }
    assert secret["type"] == "servicebinding.io/redis"
    assert secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "agentstream"
    assert owners(secret) == {("AgentStream", unique), ("ConsumerGroup", unique)}
    with redis.Redis(port=shared_broker.port, username=said_there["username"], password=password) as client:
        assert client.ping()


async def test_a_secret_that_was_deleted_is_made_again(
    team: Team, unique: str, shared_broker: Server
) -> None:
    resources = (a_stream(unique), a_group(unique, streamRef={"name": unique}))
    team.create(*resources)
    await team.ready(*resources)
    first = await team.there("Secret", f"agentstream-{unique}")
    team.delete("Secret", f"agentstream-{unique}")
    uid = first["metadata"]["uid"]
    second = await team.until(
        "Secret", f"agentstream-{unique}", lambda found: found is not None and found["metadata"]["uid"] != uid
    )
    now = entries(second)

    def works() -> bool:
        with redis.Redis(
            port=shared_broker.port, username=now["username"], password=now["password"]
        ) as client:
            try:
                return client.ping()
            except redis.AuthenticationError:
                return False

    await until(works)


async def test_an_agent_that_nobody_names_any_more_loses_its_secret(team: Team, unique: str) -> None:
    stream = a_stream(unique, producers=[f"{unique}-a", f"{unique}-b"])
    team.create(stream)
    await team.ready(stream)
    await team.there("Secret", f"agentstream-{unique}-a")
    team.change("AgentStream", unique, {"spec": {"producers": [f"{unique}-b"]}})
    await team.gone("Secret", f"agentstream-{unique}-a")
    await team.there("Secret", f"agentstream-{unique}-b")


async def test_the_consumers_deployment_is_what_an_agent_needs(team: Team, unique: str) -> None:
    template = a_template(env=[{"name": "MODE", "value": "fast"}])
    template["metadata"] = {"labels": {"team": "a"}}
    resources = (
        a_stream(unique),
        a_group(unique, streamRef={"name": unique}, template=template, replicas=2, delivery={"lease": "1m"}),
    )
    team.create(*resources)
    deployment = await team.there("Deployment", f"{unique}-consumer")
    assert owners(deployment) == {("ConsumerGroup", unique)}
    spec, pod = deployment["spec"], deployment["spec"]["template"]
    assert spec["replicas"] == 2
    assert spec["selector"] == {"matchLabels": {"agentstream.dev/group": unique}}
    labels = pod["metadata"]["labels"]
    assert (labels["team"], labels["agentstream.dev/group"]) == ("a", unique)
    assert labels["app.kubernetes.io/managed-by"] == "agentstream"
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["MODE"]["value"] == "fast"
    assert env["AGENTSTREAM_BINDING"]["value"] == mount["mountPath"]
    assert env["AGENTSTREAM_POD"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (volume,) = pod["spec"]["volumes"]
    assert (volume["name"], volume["secret"]["secretName"]) == (mount["name"], f"agentstream-{unique}")
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    # whoever is told to end has the time to hand back what it holds
    assert pod["spec"]["terminationGracePeriodSeconds"] > 60


async def test_the_deployment_follows_the_template_and_the_replicas(team: Team, unique: str) -> None:
    resources = (a_stream(unique), a_group(unique, streamRef={"name": unique}, template=a_template()))
    team.create(*resources)
    await team.there("Deployment", f"{unique}-consumer")
    team.kubectl("scale", "consumergroup", unique, "--replicas=3")
    await team.until("Deployment", f"{unique}-consumer", lambda found: found["spec"]["replicas"] == 3)
    team.change("ConsumerGroup", unique, {"spec": {"template": a_template(image="coder:2")}})
    await team.until("Deployment", f"{unique}-consumer", lambda found: image_of(found) == "coder:2")
    # what its controller reports is what people see
    team.change(
        "Deployment", f"{unique}-consumer", {"status": {"replicas": 3, "readyReplicas": 3}}, "/status"
    )
    await team.until("ConsumerGroup", unique, lambda found: found["status"].get("replicas") == 3, timeout=40)
    scale = team.kubectl("get", "consumergroup", unique, "--subresource=scale", "-o", "jsonpath={.status}")
    assert f"agentstream.dev/group={unique}" in scale


def image_of(deployment: Json) -> str:
    image: str = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    return image


async def test_changes_of_others_to_the_deployment_are_put_right(team: Team, unique: str) -> None:
    resources = (a_stream(unique), a_group(unique, streamRef={"name": unique}, template=a_template()))
    team.create(*resources)
    await team.ready(*resources)
    name = f"{unique}-consumer"
    await team.there("Deployment", name)
    team.kubectl("set", "image", f"deployment/{name}", "coder=stranger:1")
    await team.until("Deployment", name, lambda found: image_of(found) == "coder:1")
    team.kubectl("scale", "deployment", name, "--replicas=7")
    await team.until("Deployment", name, lambda found: found["spec"]["replicas"] == 1)
    team.delete("Deployment", name)
    await team.until(
        "Deployment", name, lambda found: found is not None and "deletionTimestamp" not in found["metadata"]
    )


async def test_a_suspended_group_has_no_consumers(team: Team, unique: str) -> None:
    group = a_group(unique, streamRef={"name": unique}, template=a_template(), replicas=2)
    team.create(a_stream(unique), group)
    name = f"{unique}-consumer"
    await team.until("Deployment", name, lambda found: found is not None and found["spec"]["replicas"] == 2)
    team.change("ConsumerGroup", unique, {"spec": {"suspend": True}})
    await team.until("Deployment", name, lambda found: found["spec"]["replicas"] == 0)
    await team.says("ConsumerGroup", unique, "False", "Suspended", about="ScalingActive")
    team.change("ConsumerGroup", unique, {"spec": {"suspend": False}})
    await team.until("Deployment", name, lambda found: found["spec"]["replicas"] == 2)


async def test_the_first_message_starts_a_consumer(team: Team, unique: str, shared_broker: Server) -> None:
    group = a_group(unique, streamRef={"name": unique}, template=a_template(), autoscaling={})
    team.create(a_stream(unique), group)
    await team.ready(group)
    name = f"{unique}-consumer"
    await team.until("Deployment", name, lambda found: found is not None and found["spec"]["replicas"] == 0)
    with shared_broker.admin() as client:
        client.xadd(f"{{{team.namespace}.{unique}}}", {"m": "{}"})
    await team.until("Deployment", name, lambda found: found["spec"]["replicas"] == 1)


def a_deployment(name: str, **metadata: Any) -> Json:
    """Somebody's Deployment."""
    labels = {"app": name}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, **metadata},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }


async def test_of_a_deployment_that_a_group_names_only_the_replicas_change(team: Team, unique: str) -> None:
    (before,) = team.create(a_deployment(unique))
    group = a_group(unique, streamRef={"name": unique}, deploymentRef={"name": unique}, replicas=4)
    team.create(a_stream(unique), group)
    found = await team.until("Deployment", unique, lambda found: found["spec"]["replicas"] == 4)
    assert {**found["spec"], "replicas": 1} == before["spec"]
    assert "ownerReferences" not in found["metadata"]
    assert found["metadata"].get("labels") == before["metadata"].get("labels")
    ours = [entry for entry in found["metadata"]["managedFields"] if entry["manager"] == "agentstream"]
    assert [entry["fieldsV1"] for entry in ours] == [{"f:spec": {"f:replicas": {}}}]
    # it stays when the group goes
    team.delete("ConsumerGroup", unique)
    await team.gone("ConsumerGroup", unique)
    assert team.get("Deployment", unique) is not None


async def test_a_deployment_that_is_not_there_is_waited_for(team: Team, unique: str) -> None:
    group = a_group(unique, streamRef={"name": unique}, deploymentRef={"name": unique}, replicas=2)
    team.create(a_stream(unique), group)
    message = await team.says("ConsumerGroup", unique, "False", "DeploymentMissing", about="ScalingActive")
    assert unique in message
    team.create(a_deployment(unique))
    await team.until("Deployment", unique, lambda found: found["spec"]["replicas"] == 2)


async def test_a_strangers_deployment_is_left_alone(team: Team, unique: str) -> None:
    name = f"{unique}-consumer"
    (before,) = team.create(a_deployment(name))
    team.create(a_stream(unique), a_group(unique, streamRef={"name": unique}, template=a_template()))
    message = await team.says("ConsumerGroup", unique, "False", "ChildNotOurs")
    assert name in message
    after = team.get("Deployment", name)
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    team.delete("Deployment", name)
    await team.says("ConsumerGroup", unique, "True", "Ready", timeout=90)


async def test_a_strangers_secret_is_left_alone(team: Team, unique: str) -> None:
    name = f"agentstream-{unique}"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"a": "b"}}
    (before,) = team.create(secret)
    team.create(a_stream(unique, producers=[unique]))
    message = await team.says("AgentStream", unique, "False", "ChildNotOurs")
    assert name in message
    after = team.get("Secret", name)
    assert after is not None
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    team.delete("Secret", name)
    await team.says("AgentStream", unique, "True", "Ready", timeout=90)


async def test_pods_that_the_api_server_refuses_are_a_condition_with_its_words(
    team: Team, unique: str
) -> None:
    template = a_template(imagePullPolicy="Sometimes")
    team.create(a_stream(unique), a_group(unique, streamRef={"name": unique}, template=template))
    message = await team.says("ConsumerGroup", unique, "False", "TemplateRefused")
    assert "imagePullPolicy" in message
    assert "Sometimes" in message
    team.change("ConsumerGroup", unique, {"spec": {"template": a_template()}})
    await team.says("ConsumerGroup", unique, "True", "Ready")


async def test_what_only_the_operator_can_see_is_a_condition_with_the_remedy(team: Team, unique: str) -> None:
    team.create(a_stream(unique, key=f"{unique}-key"))
    message = await team.says("AgentStream", unique, "False", "KeyNotAllowed")
    assert f"{unique}-key" in message
    described = team.kubectl("describe", "agentstreams", unique)
    assert "KeyNotAllowed" in described
    team.create(a_group(unique, streamRef={"name": f"{unique}-other"}))
    message = await team.says("ConsumerGroup", unique, "False", "StreamMissing")
    assert f"{unique}-other" in message
    (reported,) = {said(found)[1] for found in [team.get("ConsumerGroup", unique)]}
    assert reported == "StreamMissing"


async def test_the_older_of_two_claimants_wins_and_an_event_tells_the_other(team: Team, unique: str) -> None:
    key = f"{{{team.namespace}.{unique}}}"
    team.create(a_stream(unique))
    await team.ready(a_stream(unique))
    team.create(a_stream(f"{unique}-late", key=key))
    message = await team.says("AgentStream", f"{unique}-late", "False", "KeyClaimed")
    assert unique in message
    await team.says("AgentStream", unique, "True", "Ready")
    event = await until(lambda: events_of(team, f"{unique}-late", "KeyClaimed"))
    assert (event[0]["type"], event[0]["source"]["component"]) == ("Warning", "agentstream")
    assert "KeyClaimed" in team.kubectl("describe", "agentstreams", f"{unique}-late").split("Events:")[1]
    # the winner goes, the other takes over
    team.delete("AgentStream", unique)
    await team.says("AgentStream", f"{unique}-late", "True", "Ready")


def events_of(team: Team, name: str, reason: str) -> list[Json]:
    """The events of a reason about an object."""
    return [
        event
        for event in team.list("Event")
        if (event["involvedObject"]["name"], event["reason"]) == (name, reason)
    ]


async def test_what_a_deletion_leaves_is_what_its_policy_says(
    team: Team, unique: str, shared_broker: Server
) -> None:
    policies = ("Retain", "Delete", "DeleteIfEmpty")
    streams = {policy: f"{unique}-{policy.lower()}" for policy in policies}
    resources = [a_stream(name, deletionPolicy=policy) for policy, name in streams.items()]
    full = a_stream(f"{unique}-full", deletionPolicy="DeleteIfEmpty")
    reader = a_group(f"{unique}-reader", streamRef={"name": f"{unique}-full"}, startFrom="Beginning")
    team.create(*resources, full, reader)
    await team.ready(*resources, full, reader)
    assert "finalizers" not in team.get("AgentStream", streams["Retain"])["metadata"]
    assert team.get("AgentStream", streams["Delete"])["metadata"]["finalizers"] == [
        "agentstream.dev/finalizer"
    ]
    with shared_broker.admin() as client:
        client.xadd(f"{{{team.namespace}.{unique}-full}}", {"m": "{}"})
        for manifest in (*resources, full):
            team.delete("AgentStream", manifest["metadata"]["name"])
        for manifest in (*resources, full):
            await team.gone("AgentStream", manifest["metadata"]["name"])
        left = {name for name in (*streams.values(), f"{unique}-full") if client.exists(key_of(team, name))}
    assert left == {streams["Retain"], f"{unique}-full"}
    await until(lambda: events_of(team, f"{unique}-full", "RetainedNotEmpty"))


def key_of(team: Team, stream: str) -> str:
    return f"{{{team.namespace}.{stream}}}"


async def test_a_deleted_group_stops_its_consumers_and_goes(
    team: Team, unique: str, shared_broker: Server
) -> None:
    group = a_group(
        unique, streamRef={"name": unique}, template=a_template(), deletionPolicy="Delete", replicas=1
    )
    team.create(a_stream(unique), group)
    await team.ready(group)
    await team.there("Deployment", f"{unique}-consumer")
    team.delete("ConsumerGroup", unique)
    await team.gone("ConsumerGroup", unique)
    await team.gone("Deployment", f"{unique}-consumer")
    await team.gone("Secret", f"agentstream-{unique}")
    with shared_broker.admin() as client:
        assert client.xinfo_groups(key_of(team, unique)) == []


async def test_a_paused_resource_is_left_as_it_is(team: Team, unique: str, shared_broker: Server) -> None:
    stream = a_stream(unique)
    stream["metadata"]["annotations"] = {"agentstream.dev/paused": "true"}
    team.create(stream)
    await team.says("AgentStream", unique, "False", "Paused")
    with shared_broker.admin() as client:
        assert not client.exists(key_of(team, unique))
    team.annotate("AgentStream", unique, paused="false")
    await team.says("AgentStream", unique, "True", "Ready")


async def test_when_a_pod_is_gone_its_messages_are_handed_on_at_once(
    team: Team, unique: str, shared_broker: Server
) -> None:
    group = a_group(
        unique,
        streamRef={"name": unique},
        template=a_template(),
        startFrom="Beginning",
        delivery={"lease": "1h"},
    )
    team.create(a_stream(unique), group)
    await team.ready(group)
    pod = f"{unique}-consumer-5d4f-x7k2p"
    team.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod,
                "labels": {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": unique},
            },
            "spec": {"containers": [{"name": "a", "image": "a:1"}]},
        }
    )
    key = key_of(team, unique)
    with shared_broker.admin() as client:
        client.xadd(key, {"m": "{}"})
        client.xreadgroup(unique, f"{pod}.1", {key: ">"})
        team.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
        # an hour would have to pass before anybody may claim it
        await until(lambda: client.xpending_range(key, unique, "-", "+", 1, idle=3_600_000), timeout=20)
