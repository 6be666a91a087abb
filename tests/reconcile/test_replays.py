"""Replays are carried out: what is selected once more, and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from agentstream.errors import ConnectionLost, ServerRefused
from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream_operator.resources.status import ConditionReason, ConditionType, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay
from support.cluster import MemoryCluster
from support.operator import Operator, operator
from support.resources import KEY, PAUSED, TEMPLATE, a_group, a_replay, a_stream
from support.servers import Server
from support.waiting import until

KEYS = StreamKeys(KEY)
RETRY, DEAD = KEYS.retry("coder"), KEYS.dead_letters("coder")
STREAM = a_stream(producers=["planner"])
GROUP, OTHER = a_group(), a_group("reviewer")
CALLS = GroupCalls(Consumes("tasks", KEY, "coder"), "pod.1")
FAST = 100_000


class Held:
    """An entry that a consumer holds, as calls about it take one."""

    def __init__(self, entry: str) -> None:
        self.id, self.source, self.counter, self.after = entry, CALLS.main, 1, None


def body(**changes: Any) -> str:
    message = {
        "v": 1, "id": str(uuid.uuid4()), "from": "planner", "to": "coder", "type": "task_request",
        "payload": {}, "timestamp": 1.0, **changes,
    }  # fmt: skip
    return json.dumps(message)


def send(admin: Any, count: int, **changes: Any) -> list[str]:
    """Adds messages that the group has read and acknowledged."""
    pipe = admin.pipeline()
    for _ in range(count):
        pipe.xadd(KEY, {"m": body(**changes)})
    ids = [str(entry) for entry in pipe.execute()]
    admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=count)
    for at in range(0, count, 100):
        admin.execute_command(*CALLS.settle(CALLS.main, "acked", [Held(each) for each in ids[at : at + 100]]))
    return ids


def bury(admin: Any, count: int, reason: str = "MaxDeliveries", **changes: Any) -> list[str]:
    """Adds dead letters. Returns their origins."""
    origins = [f"{at}-1" for at in range(1, count + 1)]
    pipe = admin.pipeline()
    for origin in origins:
        pipe.xadd(
            DEAD, {"m": body(**changes), "origin": origin, "reason": reason, "error": "E", "attempts": "5"}
        )
    pipe.execute()
    return origins


def origins(admin: Any) -> list[str]:
    """What the group got once more, in order."""
    return [json.loads(fields["x"])["origin"] for _, fields in admin.xrange(RETRY)]


def of_stream(name: str = "again", /, **more: Any) -> StreamReplay:
    origin = {"source": "Stream", **more.pop("origin", {})}
    return of_dead(name, **{"from": origin, **more})


def of_dead(name: str = "again", /, **more: Any) -> StreamReplay:
    meta = {"uid": str(uuid.uuid4())}
    return a_replay(name, meta=meta, **{"rate": FAST, "window": 1_000_000, **more})


def status(op: Operator | MemoryCluster, replay: StreamReplay) -> StreamReplayStatus:
    found = (op.cluster if isinstance(op, Operator) else op).statuses.get(replay.key)
    return found if isinstance(found, StreamReplayStatus) else StreamReplayStatus()


async def ended(op: Operator, replay: StreamReplay, phase: str = "Complete") -> StreamReplayStatus:
    await until(lambda: status(op, replay).phase in {"Complete", "Failed"}, timeout=20)
    assert status(op, replay).phase == phase, op.cluster.statuses[replay.key]
    return status(op, replay)


def changed(replay: StreamReplay, **spec: Any) -> StreamReplay:
    """The same replay, edited."""
    document = replay.model_dump(by_alias=True, mode="json", exclude_none=True)
    document["spec"].update(spec)
    document["metadata"]["generation"] += 1
    document.pop("status", None)
    return StreamReplay.model_validate(document)


async def test_the_group_gets_what_is_selected_once_more_and_no_other_group_anything(
    server: Server, admin: Any
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP, OTHER)
        wanted = send(admin, 1_200)
        send(admin, 30, type="event")
        wanted += send(admin, 5)
        replay = of_stream(select={"types": ["task_request"]}, reason="INC-1: a bug")
        op.declare(replay)
        found = await ended(op, replay)
        assert origins(admin) == wanted
        assert (found.matched, found.moved, found.skipped) == (1_205, 1_205, {})
        assert admin.exists(KEYS.retry("reviewer"))
        assert admin.xlen(KEYS.retry("reviewer")) == 0
        assert admin.xlen(KEY) == 1_235
        assert op.cluster.says(replay.key, ConditionType.COMPLETE)[:2] == ("True", "ReplayFinished")
        assert op.cluster.ready(replay.key)
        reasons = op.cluster.reasons(replay.key)
        assert reasons == [ConditionReason.REPLAY_STARTED, ConditionReason.REPLAY_FINISHED]
        messages = [event.message for event in op.cluster.events if event.about == replay.key]
        assert all("INC-1: a bug" in message for message in messages)


async def test_dead_letters_are_moved_as_they_are_selected_and_who_asked_is_told(
    server: Server, admin: Any
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = bury(admin, 700)
        bury(admin, 20, "Malformed")
        bury(admin, 3, expires_at=1)
        asked = {"agentstream.dev/requested-by": "jane"}
        replay = of_dead(select={"reasons": ["MaxDeliveries"]}, annotations=asked)
        op.declare(replay)
        found = await ended(op, replay)
        assert origins(admin) == wanted
        assert (found.matched, found.moved, found.skipped) == (703, 700, {"expired": 3})
        assert admin.xlen(DEAD) == 23
        assert "jane" in op.cluster.events[-1].message


async def test_a_drop_removes_what_is_selected_and_nothing_else(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        bury(admin, 600)
        bury(admin, 4, "Malformed", expires_at=1)
        replay = of_dead(action="Drop", select={"reasons": ["MaxDeliveries"]})
        op.declare(replay)
        found = await ended(op, replay)
        assert (found.matched, found.moved) == (600, 600)
        assert {fields["reason"] for _, fields in admin.xrange(DEAD)} == {"Malformed"}
        assert admin.xlen(RETRY) == 0
        assert "removed" in op.cluster.events[-1].message


@pytest.mark.parametrize("make", [of_stream, of_dead])
async def test_a_dry_run_counts_and_changes_nothing(server: Server, admin: Any, make: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 40)
        send(admin, 3, expires_at=1)
        bury(admin, 40)
        bury(admin, 3, expires_at=1)
        replay = make(dryRun=True)
        op.declare(replay)
        found = await ended(op, replay)
        assert (found.matched, found.moved, found.skipped) == (43, 0, {"expired": 3})
        assert op.cluster.says(replay.key, ConditionType.COMPLETE)[1] == "DryRunFinished"
        assert (admin.xlen(DEAD), admin.xlen(RETRY)) == (43, 0)
        assert not admin.keys("*:replay:*")


async def test_what_the_group_gets_anyway_is_left_out(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 3)
        admin.xadd(KEY, {"m": body()})
        admin.xreadgroup("coder", "pod.1", {KEY: ">"})
        admin.xadd(KEY, {"m": body()})
        admin.xadd(KEY, {"m": "no message"})
        replay = of_stream()
        op.declare(replay)
        found = await ended(op, replay)
        assert (found.matched, found.moved) == (6, 3)
        assert found.skipped == {"pending": 1, "undelivered": 1, "invalid": 1}


async def test_a_replay_ends_with_what_was_there_when_it_began(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 20)
        replay = of_stream(rate=40)
        op.declare(replay)
        await until(lambda: (status(op, replay).moved or 0) > 0)
        send(admin, 20)
        await ended(op, replay)
        assert origins(admin) == wanted


@pytest.mark.parametrize("make", [of_stream, of_dead])
async def test_a_clock_that_is_set_back_meanwhile_makes_it_no_longer(
    server: Server, admin: Any, make: Any
) -> None:
    cluster, replay, add = MemoryCluster(), make(rate=40), send if make is of_stream else bury
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        wanted = add(admin, 40)
        op.declare(replay)
        await until(lambda: (status(op, replay).moved or 0) > 0)
    begun = status(cluster, replay)
    assert begun.started_at is not None
    # as if the clock had been an hour ahead then: what is added now has ids from before that
    cluster.statuses[replay.key] = begun.model_copy(
        update={"started_at": begun.started_at + timedelta(hours=1)}
    )
    add(admin, 10)
    stored = [cluster.as_stored(each) for each in (STREAM, GROUP, replay)]
    async with operator(server.url, *stored, cluster=cluster) as op:
        await ended(op, replay)
        assert origins(admin) == wanted


@pytest.mark.parametrize("make", [of_stream, of_dead])
async def test_what_was_added_while_the_clock_was_ahead_belongs_to_the_range(
    server: Server, admin: Any, make: Any
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        far = (round(datetime.now(UTC).timestamp()) + 3600) * 1000
        # the ids that follow are beyond it
        admin.xadd(KEY if make is of_stream else DEAD, {"m": "{"}, id=f"{far}-0")
        admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=1)
        wanted = send(admin, 5) if make is of_stream else bury(admin, 5)
        replay = make(select={"types": ["task_request"]})
        op.declare(replay)
        await ended(op, replay)
        assert origins(admin) == wanted


async def test_a_limit_is_a_limit_and_a_range_is_a_range(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        ids = send(admin, 100)
        replay = of_stream(limit=7, origin={"since": ids[10], "until": ids[50]})
        op.declare(replay)
        await ended(op, replay)
        assert origins(admin) == ids[10:17]
        last = of_stream("last", origin={"since": ids[98], "until": ids[98]})
        op.declare(last)
        await ended(op, last)
        assert origins(admin) == [*ids[10:17], ids[98]]


async def test_it_holds_while_the_group_has_as_many_retries_as_the_window(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 30)
        replay = of_stream(window=10)
        op.declare(replay)
        await until(lambda: admin.xlen(RETRY) == 10)
        await until(lambda: op.cluster.says(replay.key, ConditionType.READY)[1] == "WindowFull")
        assert admin.xlen(RETRY) == 10
        op.declare(changed(replay, window=20))
        await until(lambda: admin.xlen(RETRY) == 20)
        taken = origins(admin)
        admin.xtrim(RETRY, maxlen=0)
        await ended(op, replay)
        assert taken + origins(admin) == wanted


async def test_a_second_replay_of_a_group_waits_for_the_first_and_says_so(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        ids = send(admin, 20)
        first, second = of_stream("first", rate=5, age=5), of_stream("second")
        op.declare(first)
        await until(lambda: status(op, first).phase == "Running")
        op.declare(second)
        await until(lambda: status(op, second).phase == "Pending")
        _, reason, message = op.cluster.says(second.key, ConditionType.READY)
        assert reason == "WaitingForReplay"
        assert "first" in message
        # one that is held lets others go first
        op.declare(changed(first, suspend=True))
        await ended(op, second)
        assert status(op, first).phase == "Suspended"
        before = status(op, first).moved or 0
        assert before < 20
        op.declare(changed(changed(first), rate=FAST))
        await ended(op, first)
        assert status(op, first).moved == 20
        assert Counter(origins(admin)) == Counter(dict.fromkeys(ids, 2))


async def test_a_replay_is_held_and_goes_on_where_it_was(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 40)
        replay = of_stream(rate=20)
        op.declare(replay)
        await until(lambda: admin.xlen(RETRY) > 2)
        held = changed(replay, suspend=True)
        op.declare(held)
        await until(lambda: status(op, replay).phase == "Suspended")
        assert op.cluster.says(replay.key, ConditionType.SUSPENDED)[1] == "Suspended"
        there = admin.xlen(RETRY)
        await op.engine.idle()
        await asyncio.sleep(0.15)
        assert admin.xlen(RETRY) == there < 40
        op.declare(changed(held, suspend=False, rate=FAST))
        await ended(op, replay)
        assert origins(admin) == wanted


async def test_a_replay_of_a_group_that_is_not_there_waits_for_it(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM)
        replay = of_stream()
        op.declare(replay)
        await until(lambda: op.cluster.condition(replay.key, ConditionType.READY))
        assert op.cluster.says(replay.key, ConditionType.READY)[1] == "GroupNotFound"
        await op.put(GROUP)
        await ended(op, replay)
        assert op.cluster.says(replay.key, ConditionType.COMPLETE)[1] == "NothingMatched"


async def test_a_replay_fails_with_its_group(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 40)
        replay = of_stream(rate=10)
        op.declare(replay)
        await until(lambda: (status(op, replay).moved or 0) > 0)
        await op.delete(GROUP)
        found = await ended(op, replay, "Failed")
        assert 0 < (found.moved or 0) < 40
        assert op.cluster.says(replay.key, ConditionType.FAILED)[1] == "GroupDeleted"
        assert ConditionReason.REPLAY_FAILED in op.cluster.reasons(replay.key)


async def test_a_range_outside_of_what_the_stream_has_fails_and_says_what_it_has(
    server: Server, admin: Any
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        ids = send(admin, 20)
        admin.xtrim(KEY, maxlen=5, approximate=False)
        outside = of_stream("outside", origin={"since": ids[0], "until": ids[9]})
        op.declare(outside)
        await ended(op, outside, "Failed")
        _, reason, message = op.cluster.says(outside.key, ConditionType.FAILED)
        assert reason == "OutsideRetention"
        assert ids[15] in message
        partly = of_stream("partly", origin={"since": ids[0]})
        op.declare(partly)
        await ended(op, partly)
        assert ids[15] in op.cluster.says(partly.key, ConditionType.RETENTION_HEALTHY)[2]
        assert origins(admin) == ids[15:]


async def test_what_becomes_of_moved_messages_is_followed_after_the_end(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 3)
        replay = of_stream()
        op.declare(replay)
        await ended(op, replay)
        assert status(op, replay).handled == 0
        stats = KEYS.stats("coder")
        admin.hincrby(stats, f"replay:{replay.replay_id}:acked", 2)
        admin.hincrby(stats, f"replay:{replay.replay_id}:dead", 1)
        await until(lambda: (status(op, replay).handled, status(op, replay).dead) == (2, 1))
        assert status(op, replay).phase == "Complete"


async def test_deleting_a_replay_stops_it_and_removes_what_the_server_knew(
    server: Server, admin: Any
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 40)
        replay = of_stream(rate=10)
        op.declare(replay)
        await until(lambda: (status(op, replay).moved or 0) > 0)
        op.engine.remove(replay.key)
        op.cluster.forget(replay.key)
        await until(lambda: not admin.keys("*:replay:*"))
        there = admin.xlen(RETRY)
        await op.event(replay.key, ConditionReason.REPLAY_STOPPED)
        await asyncio.sleep(0.2)
        assert admin.xlen(RETRY) == there < 40
        assert not admin.keys("*:replay:*")
        assert not [name for name in admin.hkeys(KEYS.stats("coder")) if name.startswith("replay:")]


async def test_a_replay_is_deleted_when_its_time_is_over(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        bury(admin, 1)
        replay = of_dead(ttlSecondsAfterFinished=0)
        op.declare(replay)
        await until(lambda: [owner.key for owner in op.cluster.deleted_replays] == [replay.key])
        op.engine.remove(replay.key)
        await until(lambda: not admin.keys("*:replay:*"))
        assert ConditionReason.REPLAY_STOPPED not in op.cluster.reasons(replay.key)


async def test_it_waits_while_the_server_is_away_and_goes_on(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 60)
        replay = of_stream(rate=20)
        op.declare(replay)
        await until(lambda: admin.xlen(RETRY) > 2)
        admin.execute_command("CLIENT", "PAUSE", "2500", "ALL")
        await until(lambda: op.cluster.says(replay.key, ConditionType.READY)[1] == "BackendUnavailable")
        op.declare(changed(replay, rate=FAST))
        await ended(op, replay)
        assert origins(admin) == wanted


class Dying:
    """A broker whose calls for replays end with a failure at one of them: before it, or after it was done."""

    def __init__(self, at: int, error: BaseException, *, done: bool) -> None:
        self.at, self.error, self.done, self.calls = at, error, done, 0
        self.dead = asyncio.Event()

    def around(self, broker: Any) -> Dying:
        self._broker = broker
        return self

    def __getattr__(self, name: str) -> Any:
        if name != "call":
            return getattr(self._broker, name)

        async def call(*command: Any) -> Any:
            self.calls += 1
            if self.dead.is_set():
                await asyncio.Event().wait()
            if self.calls != self.at:
                return await self._broker.call(*command)
            if self.done:
                await self._broker.call(*command)
            self.dead.set()
            raise self.error

        return call


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("make", [of_stream, of_dead])
async def test_an_operator_that_is_killed_at_any_call_is_followed_by_one_that_goes_on(
    server: Server, admin: Any, make: Any, at: int, *, done: bool
) -> None:
    cluster, replay = MemoryCluster(), make(limit=1_100)
    dying = Dying(at, ConnectionLost("killed"), done=done)
    async with operator(server.url, cluster=cluster, broker=dying.around) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 1_300) if make is of_stream else bury(admin, 1_300)
        op.declare(replay)
        await until(dying.dead.is_set)
    stored = [cluster.as_stored(each) for each in (STREAM, GROUP, replay)]
    async with operator(server.url, *stored, cluster=cluster) as op:
        found = await ended(op, replay)
        assert origins(admin) == wanted[:1_100]
        assert found.moved == 1_100


async def test_two_operators_at_once_move_nothing_twice(server: Server, admin: Any) -> None:
    cluster, replay = MemoryCluster(), of_stream(rate=2_000)
    async with operator(server.url, cluster=cluster) as one:
        await one.put(STREAM, GROUP)
        async with operator(server.url, cluster=cluster) as other:
            await other.put(STREAM, GROUP)
            wanted = send(admin, 3_000)
            one.declare(replay)
            other.declare(replay)
            await ended(one, replay)
            await until(lambda: len(origins(admin)) == 3_000)
            assert origins(admin) == wanted


async def test_a_server_that_refuses_is_told_and_asked_again(server: Server, admin: Any) -> None:
    broker = Dying(2, ServerRefused("OOM command not allowed"), done=False)
    async with operator(server.url, broker=broker.around) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 3)
        replay = of_stream()
        op.declare(replay)
        await until(broker.dead.is_set)
        await until(lambda: "OOM command" in op.cluster.says(replay.key, ConditionType.READY)[2])
        broker.dead.clear()
        await ended(op, replay)
        assert origins(admin) == wanted


async def test_replays_keep_their_rate(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        send(admin, 200)
        replay = of_stream(rate=100)
        op.declare(replay)
        found = await ended(op, replay)
        assert found.started_at is not None
        assert found.finished_at is not None
        took = (found.finished_at - found.started_at).total_seconds()
        assert took >= 1.8
        assert found.started_at <= datetime.now(UTC)


async def test_a_replay_wakes_a_group_that_is_scaled_to_zero(server: Server, admin: Any) -> None:
    group = a_group(template=TEMPLATE, autoscaling={"minReplicas": 0, "maxReplicas": 3})
    async with operator(server.url) as op:
        await op.put(STREAM, group)
        await until(lambda: group.key in op.cluster.workloads)
        await until(lambda: op.cluster.workloads[group.key].replicas == 0)
        bury(admin, 5)
        replay = of_dead()
        op.declare(replay)
        await ended(op, replay)
        await until(lambda: op.cluster.workloads[group.key].replicas > 0)


async def test_a_paused_replay_does_nothing(server: Server, admin: Any) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        bury(admin, 5)
        replay = of_dead(annotations=PAUSED)
        op.declare(replay)
        await until(lambda: status(op, replay).phase == "Suspended")
        assert op.cluster.says(replay.key, ConditionType.SUSPENDED)[1] == "Paused"
        await op.engine.idle()
        assert admin.xlen(DEAD) == 5


async def test_many_replays_of_many_groups_are_carried_out_side_by_side(server: Server, admin: Any) -> None:
    groups = [a_group(f"g{n}") for n in range(12)]
    async with operator(server.url) as op:
        await op.put(STREAM, *groups)
        replays = [of_dead(f"again-{n}", group=f"g{n}") for n in range(12)]
        for n in range(12):
            pipe = admin.pipeline()
            for at in range(60):
                pipe.xadd(KEYS.dead_letters(f"g{n}"), {"m": body(to=f"g{n}"), "origin": f"{at + 1}-1"})
            pipe.execute()
        op.declare(*replays)
        for n, replay in enumerate(replays):
            assert (await ended(op, replay)).moved == 60
            assert admin.xlen(KEYS.retry(f"g{n}")) == 60


async def test_what_a_replica_has_not_heard_of_is_taken_from_the_status(server: Server, admin: Any) -> None:
    cluster, replay = MemoryCluster(), of_stream(rate=40)
    async with operator(server.url, cluster=cluster) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 60)
        op.declare(replay)
        await until(lambda: (status(op, replay).moved or 0) > 10)
    reached = status(cluster, replay).cursor
    assert reached is not None
    taken = [each for each in origins(admin) if wanted.index(each) > wanted.index(reached)]
    # the server forgets what it knew of the replay, and what it has moved since the status was written
    admin.delete(*admin.keys("*:replay:*"))
    kept = len(origins(admin)) - len(taken)
    for entry, _ in admin.xrange(RETRY)[kept:]:
        admin.xdel(RETRY, entry)
    stored = [cluster.as_stored(each) for each in (STREAM, GROUP, replay)]
    async with operator(server.url, *stored, cluster=cluster) as op:
        await ended(op, replay)
        assert origins(admin) == wanted


def has_more(admin: Any, moved: int) -> bool:
    """Whether the group got more than so many once more."""
    return bool(admin.xlen(RETRY) > moved)


@pytest.mark.parametrize("make", [of_stream, of_dead])
@pytest.mark.parametrize("limit", [None, 40])
async def test_what_the_server_forgets_meanwhile_is_not_done_twice(
    server: Server, admin: Any, make: Any, limit: int | None
) -> None:
    async with operator(server.url) as op:
        await op.put(STREAM, GROUP)
        wanted = send(admin, 60) if make is of_stream else bury(admin, 60)
        replay = make(rate=40, limit=limit)
        op.declare(replay)
        for moved in (5, 20, 30):
            await until(partial(has_more, admin, moved))
            # as another leader who sees that the replay was deleted, or a replica that has not heard of it
            admin.delete(*admin.keys("*:replay:*"))
        await ended(op, replay)
        assert origins(admin) == wanted[:limit]


async def test_what_was_signed_with_a_key_that_is_gone_stays_where_it_is(server: Server, admin: Any) -> None:
    signed = a_stream(producers=["planner"], signing={"policy": "Require"})
    async with operator(server.url) as op:
        await op.put(signed, GROUP)
        key = op.cluster.signing[signed.key].keys[0].id
        for name in (key, "gone"):
            admin.xadd(DEAD, {"m": body(), "origin": "1-1", "reason": "MaxDeliveries", "s": f"{name}:1:mac"})
        replay = of_dead()
        op.declare(replay)
        found = await ended(op, replay)
        assert (found.moved, found.skipped) == (1, {"unknownKey": 1})
        assert admin.xlen(DEAD) == 1
