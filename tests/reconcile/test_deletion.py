"""What goes from a real server with its resource, and what stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import redis

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.resources.meta import FINALIZER
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.operator import operator
from support.resources import FORCED, KEY, PAUSED, TEMPLATE, a_group, a_stream
from support.servers import Server
from support.waiting import until


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
