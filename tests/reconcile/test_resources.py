"""Resources come true on a real server: creation, adoption, conflicts, agents, deletion."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis

from agentstream.protocol.keys import StreamKeys, nudge_channel
from agentstream.protocol.routes import Consumes, Produces, Route, decode_route
from agentstream.transport.client import Client
from agentstream_operator.cluster.port import Owner, Unreadable
from agentstream_operator.reconcile.resources import streams
from agentstream_operator.resources.meta import FINALIZER, NamespaceSeen
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.operator import FAST, operator
from support.resources import FORCED, KEY, PAUSED, ROUTES, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until


async def test_a_stream_and_its_group_are_created(server: Server, admin: redis.Redis) -> None:
    stream, group = a_stream(producers=["planner"]), a_group(startFrom="Beginning")
    async with operator(server.url) as op:
        await op.put(stream, group)
        assert admin.type(KEY) == "stream"
        assert admin.hgetall(StreamKeys(KEY).meta)["uid"] == "team-tasks"
        assert [g["name"] for g in admin.xinfo_groups(KEY)] == ["coder"]
        assert op.cluster.reasons(stream.key) == [ConditionReason.STREAM_CREATED]
        assert op.cluster.reasons(group.key) == [ConditionReason.GROUP_CREATED]


async def test_order_of_declaration_does_not_matter(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        group = a_group()
        op.declare(group)
        await until(lambda: group.key in op.cluster.statuses)
        assert op.cluster.says(group.key, ConditionType.STREAM_READY)[1] == ConditionReason.STREAM_MISSING
        await op.put(a_stream())
        await op.ready(group.key)


async def test_at_most_one_status_is_written_for_a_new_resource(server: Server) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_group())
        assert op.cluster.writes["write_status"] == 2


async def test_producers_are_told_which_groups_a_broadcast_stream_has(
    server: Server, admin: redis.Redis
) -> None:
    def reported() -> dict[str, tuple[str, ...]]:
        route = decode_route(str(admin.hget(ROUTES, "planner")).encode())
        return {produces.stream: produces.groups for produces in route.produces}

    news = a_stream("news", producers=["planner"], broadcast=True)
    tester = a_group("tester", stream="news")
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_group(), news, tester)
        assert reported() == {"tasks": (), "news": ("tester",)}
        await op.put(a_group("archive", stream="news", group="files"))
        await until(lambda: reported() == {"tasks": (), "news": ("files", "tester")})
        await op.delete(tester)
        await until(lambda: reported() == {"tasks": (), "news": ("files",)})
        await op.put(a_stream("news", producers=["planner"], broadcast=False, meta={"generation": 2}))
        await until(lambda: reported() == {"tasks": (), "news": ()})


async def test_status_follows_contracts_that_its_producers_are_told_of(
    server: Server, admin: redis.Redis
) -> None:
    contract = {"type": "event", "schema": {"type": "object"}}
    async with operator(server.url, options=replace(FAST, loops=replace(FAST.loops, resync=3600.0))) as op:
        await op.put(a_stream(producers=["planner"]), a_group())
        await op.put(a_stream(producers=["planner"], contracts=[contract], meta={"generation": 2}))
        await until(lambda: op.cluster.statuses[a_stream().key].observed_generation == 2)
        assert decode_route(str(admin.hget(ROUTES, "planner")).encode()).produces[0].contracts


async def test_an_agents_route_credentials_and_user_fit_together(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_group(agent="planner", deliver="All"))
        field = admin.hget(ROUTES, "planner")
        assert decode_route(field.encode()) == Route(
            produces=(Produces("tasks", KEY),), consumes=(Consumes("tasks", KEY, "coder", deliver_all=True),)
        )
        secret = op.cluster.secrets["team", "planner"]
        with redis.Redis(port=server.port, username=secret.username, password=secret.password) as login:
            assert login.hget(ROUTES, "planner") == field.encode()
            with pytest.raises(redis.exceptions.NoPermissionError):
                login.flushall()
        owners = {key.kind for key in op.cluster.owners["team", "planner"]}
        assert owners == {"AgentStream", "ConsumerGroup"}


async def test_a_password_outlives_the_operator(server: Server, admin: redis.Redis) -> None:
    resources = (a_stream(producers=["planner"]), a_group())
    async with operator(server.url) as op:
        await op.put(*resources)
        cluster, secrets = op.cluster, dict(op.cluster.secrets)
    async with operator(server.url, *resources, cluster=cluster) as op:
        await op.engine.idle()
    assert cluster.secrets == secrets


async def test_a_restarted_operator_writes_no_status_again(server: Server) -> None:
    resources = (a_stream(producers=["planner"]), a_group())
    async with operator(server.url) as op:
        await op.put(*resources)
        cluster = op.cluster
    before = (cluster.writes["write_status"], cluster.writes["emit"])
    async with operator(server.url, *resources, cluster=cluster) as op:
        await op.engine.idle()
        op.engine.check_all()
        await op.engine.idle()
    assert (cluster.writes["write_status"], cluster.writes["emit"]) == before


async def test_an_agent_loses_what_it_is_no_longer_named_for(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner", "other"]))
        op.declare(a_stream(producers=["other"], meta={"generation": 2}))
        await until(lambda: admin.acl_getuser("agentstream.team.planner") is None)
        await until(lambda: admin.hkeys(ROUTES) == ["other"])
        assert ("team", "planner") not in op.cluster.secrets


async def test_nothing_shrinks_before_everything_was_listed(server: Server, admin: redis.Redis) -> None:
    stream = a_stream(producers=["planner", "other"])
    async with operator(server.url) as op:
        await op.put(stream, a_group(agent="planner"))
        cluster = op.cluster
    before = admin.acl_getuser("agentstream.team.planner")["selectors"]
    fewer = a_stream(producers=["planner"], meta={"generation": 2})
    async with operator(server.url, fewer, cluster=cluster, complete=False) as op:
        await op.engine.idle()
        assert admin.acl_getuser("agentstream.team.planner")["selectors"] == before
        assert admin.acl_getuser("agentstream.team.other") is not None
        op.engine.listed()
        await until(lambda: admin.acl_getuser("agentstream.team.other") is None)
        await until(lambda: admin.acl_getuser("agentstream.team.planner")["selectors"] != before)


async def test_nobody_is_removed_while_a_resource_of_the_namespace_cannot_be_read(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_stream("more", producers=["other"]))
        op.engine.unreadable(Unreadable(Owner(a_stream("broken").key, "1"), 1, "spec: why"))
        op.engine.remove(a_stream("more").key)
        await op.engine.idle()
        assert admin.acl_getuser("agentstream.team.other") is not None
        op.engine.remove(a_stream("broken").key)
        await until(lambda: admin.acl_getuser("agentstream.team.other") is None)


async def test_what_cannot_be_read_says_so_in_its_status_once_for_each_mistake(server: Server) -> None:
    broken, valid = a_stream("broken").key, a_stream()

    def found(generation: int, problem: str) -> Unreadable:
        return Unreadable(Owner(broken, "1"), generation, problem)

    async with operator(server.url) as op:
        await op.put(valid)
        # the echo of a status comes as another event
        for one in (found(1, "spec: a"), found(1, "spec: a"), found(2, "spec: a"), found(2, "spec: b")):
            op.engine.unreadable(one)
            await op.engine.idle()
        status = op.cluster.statuses[broken]
        assert status.observed_generation == 2
        said = [(c.type, c.status, c.reason, c.message) for c in status.conditions if c.type != "Synced"]
        assert said == [("Ready", "False", "Invalid", "spec: b"), ("Stalled", "True", "Invalid", "spec: b")]
        op.engine.unreadable(found(2, "spec: b"))
        # the version of a valid one stays in effect, and so does its status
        op.engine.unreadable(Unreadable(Owner(valid.key, "1"), 2, "spec: c"))
        await op.engine.idle()
        assert op.cluster.ready(valid.key)
        assert op.cluster.statuses[broken] is status


async def test_users_of_namespaces_that_are_not_watched_stay(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]))
    async with operator(server.url, namespaces=["elsewhere"]) as op:
        await op.engine.idle()
        assert admin.acl_getuser("agentstream.team.planner") is not None
    async with operator(server.url, namespaces=["team"]) as op:
        await until(lambda: admin.acl_getuser("agentstream.team.planner") is None)


async def test_an_existing_stream_is_adopted_with_its_entries(server: Server, admin: redis.Redis) -> None:
    admin.xadd(KEY, {"m": "{}"})
    async with operator(server.url) as op:
        await op.put(a_stream())
        assert op.cluster.reasons(a_stream().key) == [ConditionReason.STREAM_ADOPTED]
        assert admin.xlen(KEY) == 1


async def test_a_retained_stream_is_resumed_by_its_namespace_and_by_no_later_one_of_that_name(
    server: Server, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_ANNOTATED", 0.05)
    # as the API server: whatever is made again has another uid
    first, second, third = (a_stream(producers=["planner"], meta={"uid": uid}) for uid in "123")
    user = "agentstream.team.planner"
    async with operator(server.url) as op:
        await op.put(first)
        admin.xadd(KEY, {"m": "{}"})
        await op.delete(first)
        await until(lambda: admin.acl_getuser(user) is None)
        await op.put(second)
        assert "resumed the stream {team.tasks} with 1 messages" in [e.message for e in op.cluster.events]
        assert admin.acl_getuser(user) is not None

        await op.delete(second)
        op.cluster.namespaces["team"] = NamespaceSeen("another")
        group = a_group(startFrom="Beginning", deletionPolicy="Delete")
        op.declare(third, group)
        await op.event(third.key, ConditionReason.KEY_OF_FORMER_NAMESPACE)
        await op.engine.idle()
        message = op.cluster.says(third.key, ConditionType.READY)[2]
        assert message.startswith("{team.tasks} holds 1 messages of a former namespace team: annotate the")
        assert not may_add(admin, user)
        # nor does a group read them
        await until(lambda: op.cluster.condition(group.key, ConditionType.STREAM_READY) is not None)
        assert op.cluster.says(group.key, ConditionType.STREAM_READY)[1] == ConditionReason.STREAM_MISSING
        assert admin.xinfo_groups(KEY) == []
        assert KEY not in str(admin.acl_getuser("agentstream.team.coder"))
        assert admin.hget(StreamKeys(KEY).meta, "uid") == "2"

        op.cluster.namespaces["team"] = NamespaceSeen("another", adopts=True)
        await op.ready(third.key)
        await op.ready(group.key)
        await until(lambda: may_add(admin, user))
        assert admin.hget(StreamKeys(KEY).meta, "namespace_uid") == "another"
        assert admin.xlen(KEY) == 1
    # the annotation is needed once, also by another process
    op.cluster.namespaces["team"] = NamespaceSeen("another")
    async with operator(server.url, third, cluster=op.cluster) as op:
        await op.engine.idle()
        assert op.cluster.ready(third.key)


def may_add(admin: redis.Redis, user: str) -> bool:
    """Whether there is such a user and it may add to the stream."""
    if admin.acl_getuser(user) is None:
        return False
    return admin.execute_command("ACL", "DRYRUN", user, "XADD", KEY, "*", "m", "x") == "OK"


async def test_a_key_of_another_type_stays_untouched(server: Server, admin: redis.Redis) -> None:
    admin.set(KEY, "precious")
    stream, group = a_stream(producers=["planner"]), a_group()
    async with operator(server.url) as op:
        op.declare(stream, group)
        await until(lambda: stream.key in op.cluster.statuses and group.key in op.cluster.statuses)
        assert op.cluster.says(stream.key, ConditionType.READY) == (
            "False",
            ConditionReason.WRONG_TYPE,
            "{team.tasks} is a string, not a stream; left unchanged",
        )
        assert op.cluster.says(group.key, ConditionType.STREAM_READY)[1] == ConditionReason.WRONG_TYPE
        await op.engine.idle()
        assert admin.get(KEY) == "precious"
        admin.delete(KEY)
        await op.ready(stream.key)
        await op.ready(group.key)


async def test_only_observing_writes_nothing_and_says_what_differs(
    server: Server, admin: redis.Redis
) -> None:
    stream, group = a_stream(managementPolicy="ObserveOnly", producers=["planner"]), a_group()
    async with operator(server.url) as op:
        op.declare(stream, group)
        await until(lambda: stream.key in op.cluster.statuses)
        assert op.cluster.says(stream.key, ConditionType.SYNCED) == (
            "False",
            ConditionReason.DRIFT,
            "would create the stream {team.tasks}",
        )
        admin.xadd(KEY, {"m": "{}"})
        await op.ready(stream.key)
        assert admin.keys() == [KEY]
        assert admin.acl_users() == ["default"]
        assert not op.cluster.secrets
        admin.delete(KEY)


async def test_a_paused_resource_is_left_alone(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        stream, group = a_stream(annotations=PAUSED), a_group(annotations=PAUSED)
        op.declare(stream, group)
        await until(lambda: stream.key in op.cluster.statuses)
        assert op.cluster.says(stream.key, ConditionType.SYNCED)[1] == ConditionReason.PAUSED
        assert admin.keys() == []
        op.declare(a_stream())
        await op.ready(stream.key)
        await until(lambda: op.cluster.condition(group.key, ConditionType.SYNCED) is not None)
        assert (
            op.cluster.says(group.key, ConditionType.SYNCED)[2]
            == "would create the group coder on {team.tasks}"
        )
        op.declare(a_group())
        await op.ready(group.key)


async def test_the_older_of_two_streams_has_the_key_and_the_other_takes_over_if_its_namespace_may(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_ANNOTATED", 0.05)
    older = a_stream("older", "one", age=10, key="{shared}")
    younger = a_stream("younger", "two", age=5, key="{shared}", producers=["planner"])
    async with operator(server.url, allowed_keys=["{shared*"]) as op:
        await op.put(older)
        op.declare(younger)
        await until(lambda: younger.key in op.cluster.statuses)
        assert op.cluster.says(younger.key, ConditionType.CONFLICT) == (
            "True",
            ConditionReason.KEY_CLAIMED,
            "{shared} is already used by the older AgentStream one/older",
        )
        assert op.cluster.reasons(younger.key) == [ConditionReason.KEY_CLAIMED]
        op.engine.remove(older.key)
        await op.event(younger.key, ConditionReason.KEY_OF_FORMER_NAMESPACE)
        op.cluster.namespaces["two"] = NamespaceSeen("uid-of-two", adopts=True)
        await op.ready(younger.key)


async def test_a_key_outside_the_namespace_needs_to_be_allowed(server: Server, admin: redis.Redis) -> None:
    stream = a_stream(key="{other.tasks}", producers=["planner"])
    async with operator(server.url, allowed_keys=["{shared*"]) as op:
        op.declare(stream)
        await until(lambda: stream.key in op.cluster.statuses)
        assert op.cluster.says(stream.key, ConditionType.READY)[1] == ConditionReason.KEY_NOT_ALLOWED
        await op.engine.idle()
        assert "{other.tasks}" not in admin.keys("*")
        assert "other.tasks" not in str(admin.acl_getuser("agentstream.team.planner"))


async def test_the_key_of_another_installation_stays_untouched(server: Server, admin: redis.Redis) -> None:
    admin.xadd(KEY, {"m": "{}"})
    admin.hset(StreamKeys(KEY).meta, "installation", "theirs")
    stream = a_stream(deletionPolicy="Delete")
    async with operator(server.url) as op:
        op.declare(stream, a_group())
        await until(lambda: stream.key in op.cluster.statuses)
        assert op.cluster.says(stream.key, ConditionType.CONFLICT)[2] == (
            "{team.tasks} is already used by the installation theirs"
        )
        await op.delete(stream)
        assert admin.xlen(KEY) == 1
        assert admin.xinfo_groups(KEY) == []


async def test_the_older_of_two_groups_has_the_name(server: Server) -> None:
    older, younger = a_group("older", group="g", age=2), a_group("younger", group="g", age=1)
    async with operator(server.url) as op:
        await op.put(a_stream(), older)
        op.declare(younger)
        await until(lambda: younger.key in op.cluster.statuses)
        assert op.cluster.says(younger.key, ConditionType.CONFLICT) == (
            "True",
            ConditionReason.GROUP_CLAIMED,
            "group g of tasks is already used by the older ConsumerGroup older",
        )


async def test_a_changed_lease_reaches_the_route(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(), a_group())
        op.declare(a_group(delivery={"lease": "30s"}, meta={"generation": 2}))
        await until(lambda: decode_route(admin.hget(ROUTES, "coder").encode()).consumes[0].lease == 30_000)
        await until(lambda: op.cluster.statuses[a_group().key].observed_generation == 2)
        await op.ready(a_group().key)


async def test_an_agent_is_told_that_its_route_is_another_one(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_group())
        with admin.pubsub(ignore_subscribe_messages=True) as listening:
            listening.subscribe(
                *(nudge_channel("agentstream", "team", agent) for agent in ("coder", "planner"))
            )
            listening.get_message()
            listening.get_message()
            op.declare(a_group(delivery={"lease": "30s"}))
            reported = await until(listening.get_message)
            assert reported["channel"] == nudge_channel("agentstream", "team", "coder")
            assert reported["data"] == "routes"
            assert decode_route(str(admin.hget(ROUTES, "coder")).encode()).consumes[0].lease == 30_000


async def test_an_edit_is_said_to_be_in_effect_once_its_agent_is_written(server: Server) -> None:
    # a state that passes by itself is not worth a write for an hour; what ends it is to be noticed
    patient = replace(
        FAST,
        loops=replace(FAST.loops, measure=3600.0, measure_unscaled=3600.0, resync=3600.0),
        status=replace(FAST.status, transient=3600.0),
    )
    async with operator(server.url, options=patient) as op:
        await op.put(a_stream(), a_group())
        edited = a_group(meta={"generation": 2}, delivery={"lease": "20s"})
        op.declare(edited)
        await until(lambda: op.cluster.statuses[edited.key].observed_generation == 2)
        assert op.cluster.ready(edited.key)


async def test_a_resource_created_anew_under_the_same_name_is_a_new_one(
    server: Server, admin: redis.Redis
) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream())
        op.engine.put(a_stream(meta={"uid": "another"}))
        await until(lambda: admin.hget(StreamKeys(KEY).meta, "uid") == "another")


async def test_what_the_server_refuses_is_said_in_the_status_and_tried_again(
    server: Server, admin: redis.Redis
) -> None:
    stream = a_stream()
    admin.xadd(KEY, {"m": "{}"})
    async with operator(server.url) as op:
        admin.config_set("maxmemory", 1)
        op.declare(stream)
        await until(lambda: stream.key in op.cluster.statuses)
        assert (
            "the server refused a command: OOM command not allowed"
            in op.cluster.says(stream.key, ConditionType.READY)[2]
        )
        admin.config_set("maxmemory", 0)
        await op.ready(stream.key)


async def test_the_administrators_connection_is_the_only_one(server: Server, wire: Client) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]), a_group())
        assert server.connections().count("agentstream-operator") == 1


async def test_a_finalizer_stands_only_where_deletion_destroys_something(server: Server) -> None:
    async with operator(server.url) as op:
        stream, group = a_stream(), a_group(deletionPolicy="Delete")
        await op.put(stream, group)
        assert op.cluster.finalizers == {group.key}
        changed = a_group(meta={"generation": 2, "finalizers": [FINALIZER]})
        op.declare(changed)
        await until(lambda: not op.cluster.finalizers)


async def test_a_retained_stream_stays(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream())
        await op.delete(a_stream())
        assert admin.type(KEY) == "stream"
        assert op.cluster.reasons(a_stream().key)[-1] == ConditionReason.RETAINED


async def test_a_deleted_stream_goes_with_everything_derived_from_it(
    server: Server, admin: redis.Redis
) -> None:
    stream = a_stream(deletionPolicy="Delete", producers=["planner"])
    async with operator(server.url) as op:
        await op.put(stream, a_group())
        admin.xadd(KEY, {"m": "{}"})
        admin.xadd(StreamKeys(KEY).dead_letters("coder"), {"m": "{}"})
        await op.delete(stream)
        assert op.cluster.reasons(stream.key)[-1] == ConditionReason.STREAM_DELETED
        await until(lambda: admin.keys("{team.*") == [])
        await until(lambda: op.cluster.says(a_group().key, ConditionType.STREAM_READY)[0] == "False")


async def test_an_empty_stream_is_deleted_and_one_that_is_not_stays(
    server: Server, admin: redis.Redis
) -> None:
    empty = a_stream("empty", deletionPolicy="DeleteIfEmpty")
    full = a_stream("full", deletionPolicy="DeleteIfEmpty")
    async with operator(server.url) as op:
        await op.put(empty, full, a_group(stream="full"))
        admin.xadd("{team.full}", {"m": "{}"})
        await op.delete(empty)
        await op.delete(full)
        assert op.cluster.reasons(empty.key)[-1] == ConditionReason.STREAM_DELETED
        assert op.cluster.reasons(full.key)[-1] == ConditionReason.RETAINED_NOT_EMPTY
        assert admin.exists("{team.empty}") == 0
        assert admin.xlen("{team.full}") == 1


async def test_a_deleted_group_goes_and_its_dead_letters_stay(server: Server, admin: redis.Redis) -> None:
    group = a_group(deletionPolicy="Delete", template=TEMPLATE)
    async with operator(server.url) as op:
        await op.put(a_stream(), group)
        await until(lambda: group.key in op.cluster.workloads)
        admin.xadd(StreamKeys(KEY).dead_letters("coder"), {"m": "{}"})
        await op.delete(group)
        assert op.cluster.reasons(group.key)[-1] == ConditionReason.GROUP_DELETED
        assert admin.xinfo_groups(KEY) == []
        assert admin.xlen(StreamKeys(KEY).dead_letters("coder")) == 1
        assert not op.cluster.workloads


async def test_a_retained_group_resumes_where_it_was(server: Server, admin: redis.Redis) -> None:
    async with operator(server.url) as op:
        await op.put(a_stream(), a_group())
        await op.delete(a_group())
        admin.xadd(KEY, {"m": "{}"})
        await op.put(a_group())
        assert admin.xinfo_groups(KEY)[0]["lag"] == 1


async def test_what_is_paused_is_not_deleted_unless_forced(server: Server, admin: redis.Redis) -> None:
    stream = a_stream(deletionPolicy="Delete")
    group = a_group(deletionPolicy="Delete")
    async with operator(server.url) as op:
        await op.put(stream, group)
        op.begin_deletion(stream, PAUSED)
        op.begin_deletion(group, PAUSED)
        await until(lambda: "would delete" in op.cluster.says(stream.key, ConditionType.READY)[2])
        assert op.cluster.finalizers == {stream.key, group.key}
        await op.delete(group, FORCED)
        await op.delete(stream, FORCED)
        assert admin.exists(KEY) == 0


async def test_a_group_on_a_paused_stream_is_not_removed(server: Server, admin: redis.Redis) -> None:
    group = a_group(deletionPolicy="Delete")
    async with operator(server.url) as op:
        await op.put(a_stream(), group)
        op.declare(a_stream(annotations=PAUSED))
        op.begin_deletion(group)
        await until(lambda: "would remove" in op.cluster.says(group.key, ConditionType.READY)[2])
        assert [g["name"] for g in admin.xinfo_groups(KEY)] == ["coder"]


async def test_a_server_that_is_gone_holds_a_deletion_for_five_minutes_only(private_server: Server) -> None:
    stream, group = a_stream(deletionPolicy="Delete"), a_group(deletionPolicy="Delete")
    async with operator(private_server.url) as op:
        await op.put(stream, group)
        private_server.kill()
        op.begin_deletion(stream)
        op.begin_deletion(group)
        await until(lambda: op.cluster.says(stream.key, ConditionType.READY)[0] == "False")
        await until(lambda: op.cluster.says(group.key, ConditionType.READY)[0] == "False")
        assert op.cluster.finalizers == {stream.key, group.key}
        long_ago = datetime.now(UTC) - timedelta(minutes=6)
        op.begin_deletion(stream, since=long_ago)
        op.begin_deletion(group, since=long_ago)
        await until(lambda: not op.cluster.finalizers)
        assert op.cluster.reasons(stream.key)[-1] == ConditionReason.RETAINED
