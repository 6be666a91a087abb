"""The operator as a process: killed, asked to end, one of two, and with everything around it going away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.conftest import Deploy
from cluster.team import Team, said
from support.apiserver import ApiServer
from support.deployed import Deployed, grant
from support.kstatus import kstatus
from support.servers import Server
from support.waiting import until
from unit.resources.manifests import a_group, a_stream, a_template

METRICS = {
    "agentstream_queue_depth",
    "agentstream_queue_oldest_seconds",
    "agentstream_reconcile_duration_seconds_count",
    "agentstream_reconcile_last_success_timestamp_seconds",
    "agentstream_redis_round_trips_total",
    "agentstream_redis_up",
    "agentstream_resources",
    "agentstream_api_requests_total",
    "agentstream_leader",
    "agentstream_watch_events_total",
}


async def looked_at(operator: Deployed, kind: str) -> float:
    """How often it looked at something of a kind."""
    name = "agentstream_reconcile_duration_seconds_count{"
    metrics = await operator.metrics()
    return sum(n for key, n in metrics.items() if key.startswith(name) and f'kind="{kind}"' in key)


async def test_a_restart_writes_nothing(deploy: Deploy, own_team: Team) -> None:
    operator = deploy()
    await operator.leading()
    resources = [
        manifest
        for n in range(10)
        for manifest in (
            a_stream(f"s{n}", producers=[f"g{n}", "boss"]),
            a_group(f"g{n}", streamRef={"name": f"s{n}"}, template=a_template(), replicas=1),
        )
    ]
    own_team.create(*resources)
    await own_team.ready(*resources)
    for n in range(10):
        await own_team.there("Deployment", f"g{n}-consumer")
    # until it has nothing more to say
    await until(lambda: quiet(operator))
    operator.kill()
    before = own_team.server.position
    operator.start()
    await operator.leading()

    async def has_looked() -> bool:
        counts = [await looked_at(operator, kind) for kind in ("AgentStream", "ConsumerGroup", "Agent")]
        return counts[0] >= 10 and counts[1] >= 10 and counts[2] >= 11

    await until(has_looked, timeout=30)
    await until(lambda: quiet(operator))
    assert operator.writes(before) == []
    # and it is there for what is new
    own_team.create(a_stream("new"))
    await own_team.ready(a_stream("new"), timeout=5)


async def quiet(operator: Deployed) -> bool:
    """Whether nothing waits to be done."""
    metrics = await operator.metrics()
    return metrics.get("agentstream_queue_depth") == 0


async def test_what_changed_while_it_was_down_is_made_up_for(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    operator = deploy()
    await operator.leading()
    edited = a_stream("edited", producers=["old"])
    doomed = a_stream("doomed", deletionPolicy="Delete")
    group = a_group("group", streamRef={"name": "edited"}, template=a_template())
    own_team.create(edited, doomed, group)
    await own_team.ready(edited, doomed, group)
    await own_team.there("Deployment", "group-consumer")
    operator.kill()
    own_team.change("AgentStream", "edited", {"spec": {"producers": ["new"], "broadcast": True}})
    own_team.change("ConsumerGroup", "group", {"spec": {"replicas": 3}})
    own_team.delete("AgentStream", "doomed")
    own_team.delete("Secret", "agentstream-group")
    own_team.create(a_stream("born"))
    operator.start()
    await own_team.ready(edited, group, a_stream("born"), timeout=30)
    await own_team.gone("AgentStream", "doomed")
    await own_team.there("Secret", "agentstream-new")
    await own_team.there("Secret", "agentstream-group")
    await own_team.gone("Secret", "agentstream-old")
    await own_team.until("Deployment", "group-consumer", lambda found: found["spec"]["replicas"] == 3)
    with private_server.admin() as client:
        assert not client.exists(f"{{{own_team.namespace}.doomed}}")
        names = await until(lambda: users(client, own_team) if len(users(client, own_team)) == 2 else None)
    assert names == {"group", "new"}


def users(client, team: Team) -> set[str]:
    """The agents of a namespace that have a user on the server."""
    prefix = f"agentstream.{team.namespace}."
    return {user.removeprefix(prefix) for user in client.acl_users() if user.startswith(prefix)}


async def test_a_broker_that_is_away_is_told_of_and_blocks_no_deletion_that_is_forced(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    operator = deploy()
    await operator.ready()
    stream = a_stream(deletionPolicy="Delete")
    other = a_stream("other", deletionPolicy="Delete")
    own_team.create(stream, other)
    await own_team.ready(stream, other)
    private_server.kill()
    message = await own_team.says("AgentStream", "tasks", "False", "BackendUnavailable")
    assert message
    status, why = await until(lambda: unready(operator))
    assert (status, "does not answer" in why) == (503, True)
    assert (await operator.metrics())["agentstream_redis_up"] == 0
    own_team.delete("AgentStream", "tasks")
    own_team.delete("AgentStream", "other")
    # what is on the server is to go, and cannot
    assert own_team.get("AgentStream", "tasks")["metadata"]["finalizers"] == ["agentstream.dev/finalizer"]
    own_team.annotate("AgentStream", "tasks", force_delete="true")
    await own_team.gone("AgentStream", "tasks")
    private_server.start()
    await own_team.gone("AgentStream", "other", timeout=30)
    await operator.ready()


async def unready(operator: Deployed) -> tuple[int, str] | None:
    status, why = await operator.probe("/readyz")
    return (status, why) if status != 200 else None


async def test_everything_is_back_after_the_server_has_lost_it(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    key = f"{{{own_team.namespace}.tasks}}"
    with private_server.admin() as client:
        client.xadd(key, {"m": "{}"})
        await deploy().leading()
        stream, group = a_stream(), a_group()
        own_team.create(stream, group)
        await own_team.ready(stream, group)
        client.flushall()
        await until(lambda: client.exists(key) and client.xinfo_groups(key), timeout=30)
    await until(lambda: {"DataLost", "StreamRecreated", "GroupRestored"} <= reasons(own_team))
    shown = own_team.kubectl("get", "events", "--field-selector=reason=DataLost")
    assert f"the stream {key} vanished from the server: 1 added messages are missing" in shown


def reasons(team: Team) -> set[str]:
    """What the events of a namespace tell of."""
    return {event["reason"] for event in team.list("Event")}


async def test_when_the_leader_is_killed_the_other_takes_over(deploy: Deploy, own_team: Team) -> None:
    first = deploy("agentstream-0")
    await first.leading()
    second = deploy("agentstream-1")
    await second.ready()
    assert (await second.probe("/readyz"))[1].strip() == "standing by"
    assert (await second.metrics())["agentstream_leader"] == 0
    own_team.create(a_stream("one"))
    await own_team.ready(a_stream("one"))
    assert await written(second) == set()
    first.kill()
    await second.leading(deadline=20)
    own_team.create(a_stream("two"))
    await own_team.ready(a_stream("two"))
    (lease,) = own_team.list("Lease")
    assert (lease["metadata"]["name"], lease["spec"]["holderIdentity"]) == (
        "agentstream-agentstream",
        "agentstream-1",
    )


async def written(operator: Deployed) -> set[str]:
    """What an operator wrote to, by its own account: two have the same name at the API server."""
    requests = [key for key in await operator.metrics() if key.startswith("agentstream_api_requests_total{")]
    return {
        key.partition('resource="')[2].partition('"')[0]
        for key in requests
        if any(f'verb="{verb}"' in key for verb in ("create", "patch", "apply", "update", "delete"))
    }


async def test_an_operator_that_is_asked_to_end_gives_the_lease_back(deploy: Deploy, own_team: Team) -> None:
    first = deploy("agentstream-0")
    await first.leading()
    second = deploy("agentstream-1")
    await second.ready()
    assert first.stop() == 0
    # it need not run out: it is valid for 8 s
    await second.leading(deadline=5)
    assert second.stop() == 0
    (lease,) = own_team.list("Lease")
    assert not lease["spec"].get("holderIdentity")


async def test_in_a_namespace_that_is_being_deleted_nothing_is_made(
    deploy: Deploy, own_team: Team, private_server: Server
) -> None:
    operator = deploy()
    await operator.leading()
    stream = a_stream(deletionPolicy="Delete")
    group = a_group(template=a_template(), replicas=1)
    own_team.create(stream, group)
    await own_team.ready(stream, group)
    await own_team.there("Deployment", "coder-consumer")
    own_team.server.kubectl()("delete", "namespace", own_team.namespace, "--wait=false")
    before = own_team.server.position
    # as the namespace's controller does: everything at once, in no order
    for kind, name in (
        ("Secret", "agentstream-coder"),
        ("Deployment", "coder-consumer"),
        ("AgentStream", "tasks"),
        ("ConsumerGroup", "coder"),
    ):
        own_team.delete(kind, name)
    await own_team.gone("AgentStream", "tasks")
    await own_team.gone("ConsumerGroup", "coder")
    with private_server.admin() as client:
        await until(lambda: not client.keys("*tasks*"))
    assert [r for r in operator.writes(before) if r.code < 300 and r.verb in {"create", "update"}] == []
    assert own_team.list("Secret") == own_team.list("Deployment") == []


async def test_resources_of_other_namespaces_are_nobodys_business(deploy: Deploy, own_team: Team) -> None:
    operator = deploy()
    await operator.leading()
    elsewhere = Team(own_team.server, f"{own_team.namespace}-else")
    own_team.server.create_namespace(elsewhere.namespace)
    elsewhere.create(a_stream())
    own_team.create(a_stream())
    await own_team.ready(a_stream())
    assert said(elsewhere.get("AgentStream", "tasks")) == ("", "", "")
    assert {request.namespace for request in operator.requests()} <= {"", own_team.namespace}


async def test_metrics_and_probes_of_a_working_operator(deploy: Deploy, own_team: Team) -> None:
    operator = deploy()
    await operator.leading()
    own_team.create(a_stream(), a_group())
    await own_team.ready(a_stream(), a_group())

    async def complete() -> bool:
        return {name.partition("{")[0] for name in await operator.metrics()} >= METRICS

    # some are about what has not happened yet
    await until(complete)
    labels = 'kind="AgentStream",condition="Ready",status="True"'
    assert (await operator.metrics())[f"agentstream_resources{{{labels}}}"] == 1
    assert (await operator.probe("/livez"))[0] == 200
    assert await operator.probe("/readyz") == (200, "leading\n")


@pytest.mark.parametrize("style", ["text", "json"])
async def test_logs_have_no_passwords(deploy: Deploy, own_team: Team, style: str) -> None:
    operator = deploy("agentstream-0", "--log-format", style)
    await operator.leading()
    own_team.create(a_stream(producers=["boss"]))
    await own_team.ready(a_stream())
    secret = await own_team.there("Secret", "agentstream-boss")
    assert secret["data"]["password"] not in operator.log
    assert operator.log.startswith("{" if style == "json" else "2")


async def test_a_resource_that_is_nested_too_deeply_harms_no_other(
    own_api_server: ApiServer, private_server: Server, tmp_path: Path
) -> None:
    home = "agentstream-system"
    team = Team(own_api_server, home)
    own_api_server.create_namespace(home)
    # the API server takes 10,000 levels where a schema is free
    for name, levels in (("deepest", 5_000), ("deep", 300)):
        schema = f'{{"type": "object", "x": {"[" * levels}{"]" * levels}}}'
        stream = json.dumps(a_stream(name, contracts=[{"type": "event", "schema": "?"}]))
        (tmp_path / f"{name}.json").write_text(stream.replace('"?"', schema))
        team.kubectl("create", "--validate=false", f"--filename={tmp_path / name}.json")
    team.create(a_stream("before"))
    user = grant(own_api_server, home, (home,))
    operator = Deployed(own_api_server, user, private_server.url, tmp_path, namespaces=(home,))
    operator.start()
    try:
        await team.ready(a_stream("before"))
        team.create(a_stream("after"))
        await team.ready(a_stream("after"))
        assert "spec.contracts[0].schema: is nested more than 64 levels deep" in operator.log
        await team.says("AgentStream", "deep", "False", "Invalid")
        invalid = team.get("AgentStream", "deep")
        assert invalid is not None
        assert kstatus(invalid) == "Failed"
        assert operator.complaints() == []
    finally:
        operator.kill()


async def test_what_others_put_into_objects_with_our_labels_harms_no_other(
    deploy: Deploy, own_team: Team
) -> None:
    operator = deploy()
    await operator.leading()
    levels = 50_000
    key = '"id":"a","secret":"%s"' % ("x" * 32)
    nested = "[{" + key + ',"x":' + "[" * levels + "]" * levels + "}]"
    for name, kind, label, entry in (
        ("agentstream-signing.theirs", "agentstream.dev/signing-keys", "stream", "keys"),
        ("agentstream-theirs", "servicebinding.io/redis", "agent", "signing-tasks"),
    ):
        labels = {"app.kubernetes.io/managed-by": "agentstream", f"agentstream.dev/{label}": "theirs"}
        entries = {"username": "u", "password": "p" * 40, entry: nested}
        secret = {"kind": "Secret", "metadata": {"name": name, "labels": labels}, "type": kind}
        own_team.create({"apiVersion": "v1", **secret, "stringData": entries})
    mine = a_stream("mine", signing={"policy": "Require"}, producers=["boss"])
    theirs = a_stream("theirs", signing={"policy": "Require"}, producers=["theirs"])
    own_team.create(mine)
    await own_team.ready(mine)
    operator.kill()
    operator.start()
    await operator.leading()
    # and what is needed replaces what somebody has put there
    own_team.create(theirs)
    await own_team.ready(theirs)
    assert (await operator.probe("/readyz"))[0] == 200


async def test_large_objects_take_no_more_memory_than_there_is(deploy: Deploy, own_team: Team) -> None:
    for number in range(16):
        schema = {"type": "object", "x": [{}] * 330_000}
        own_team.create(a_stream(f"large-{number}", contracts=[{"type": "event", "schema": schema}]))
    operator = deploy()
    await operator.leading()
    # which is told of by a watch, after all of its list
    own_team.create(a_stream("after"))
    await own_team.ready(a_stream("after"), timeout=90)
    # the chart's limit is 512 MiB, and decoded together these take 500 beside the operator's 90
    assert operator.most_memory() < 400
