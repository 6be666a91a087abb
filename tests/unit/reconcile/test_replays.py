"""Replays among the known resources: whom they concern, and how their statuses are written."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from agentstream_operator.cluster.port import Owner, Unreadable
from agentstream_operator.plan.conditions import ConditionUpdate, with_ready
from agentstream_operator.reconcile.state.memory import StatusMemory
from agentstream_operator.reconcile.state.state import StatusIntervals
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.resources.status import ConditionReason, ConditionType, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay
from support.cluster import MemoryCluster
from support.resources import BORN, a_group, a_replay, a_stream
from unit.reconcile.test_index import CODER, TASKS, store_of

FIRST, SECOND = a_replay("first", age=2), a_replay("second", age=1)


def test_replays_of_a_group_concern_each_other_and_nothing_else() -> None:
    store = store_of(a_stream(), a_group(), FIRST, a_replay("other", group="reviewer"))
    assert store.put(SECOND) == {FIRST.key}
    assert store.remove(FIRST.key) == {SECOND.key}
    assert store.remove(FIRST.key) == set()
    assert store.remove(SECOND.key) == set()


def test_a_group_concerns_its_replays() -> None:
    store = store_of(FIRST, SECOND, a_replay("other", group="reviewer"))
    assert store.put(a_group()) == {CODER, FIRST.key, SECOND.key}
    assert store.remove(a_group().key) == {CODER, FIRST.key, SECOND.key}


def test_the_oldest_replay_of_a_group_is_the_first() -> None:
    store = store_of(SECOND, a_replay("other", group="reviewer"), FIRST)
    assert store.replays_of(a_group().key) == [FIRST, SECOND]
    later = a_replay("first", age=0)
    store.put(later)
    assert store.replays_of(a_group().key) == [SECOND, later]
    assert store.replays_of(a_group("nobody").key) == []


changes = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(["coder", "reviewer"]), st.integers(0, 3), st.booleans()
    )
)


@given(changes)
def test_the_replays_of_a_group_are_those_that_name_it(
    changes: list[tuple[str, str, int, bool]],
) -> None:
    store, there = store_of(), {}
    for name, group, age, gone in changes:
        replay = a_replay(name, group=group, age=age)
        if gone:
            told = store.remove(replay.key)
            former = there.pop(replay.key, None)
            siblings = [r.key for r in there.values() if former is not None and same_group(r, former)]
        else:
            told = store.put(replay)
            there[replay.key] = replay
            siblings = [r.key for r in there.values() if same_group(r, replay) and r.key != replay.key]
        assert told == set(siblings)
        for each in ("coder", "reviewer"):
            expected = [r for r in there.values() if r.spec.group_ref.name == each]
            expected.sort(key=lambda r: (r.metadata.creation_timestamp, r.metadata.name))
            assert store.replays_of(a_group(each).key) == expected


def same_group(one: StreamReplay, other: StreamReplay) -> bool:
    return one.spec.group_ref == other.spec.group_ref


def test_replays_are_known_and_checked_like_other_resources() -> None:
    store = store_of(a_stream(), FIRST)
    assert store.get(FIRST.key) is FIRST
    assert list(store.keys()) == [TASKS, FIRST.key]


def test_a_replay_that_cannot_be_read_hides_no_use_of_an_agent() -> None:
    store = store_of()
    store.unreadable(Unreadable(Owner(FIRST.key, "u"), 1, "spec.rate: must be at least 1"))
    assert store.unreadable_namespaces == set()
    store.unreadable(Unreadable(Owner(a_group().key, "u"), 1, "spec.group: is no name"))
    assert store.unreadable_namespaces == {"team"}


RUNNING = ConditionUpdate(ConditionType.READY, "True", ConditionReason.REPLAYING, "moved 1")
WAITING = ConditionUpdate(ConditionType.READY, "True", ConditionReason.WINDOW_FULL, "1,200 retries")
DONE = ConditionUpdate(ConditionType.COMPLETE, "True", ConditionReason.REPLAY_FINISHED)


def test_progress_and_its_reasons_are_written_seldom_and_the_end_at_once() -> None:
    cluster, reported = MemoryCluster(), StatusMemory()
    writer = StatusWriter(cluster, lambda: BORN, StatusIntervals(numbers=1_000, progress=60, transient=0))

    async def report(moved: int, *conditions: ConditionUpdate, ready: ConditionUpdate) -> float | None:
        return await writer.write(FIRST, reported, with_ready(conditions, ready), {"moved": moved})

    async def run() -> None:
        assert await report(1, ready=RUNNING) is None
        wait = await report(2, ready=WAITING)
        assert wait is not None
        assert 0 < wait <= 60
        assert cluster.writes["write_status"] == 1
        assert await report(3, DONE, ready=RUNNING) is None

    asyncio.run(run())
    status = cluster.statuses[FIRST.key]
    assert isinstance(status, StreamReplayStatus)
    assert (status.moved, status.observed_generation) == (3, 1)
    assert cluster.writes["write_status"] == 2


def test_a_replay_that_failed_is_failed_for_good() -> None:
    failed = ConditionUpdate(ConditionType.FAILED, "True", ConditionReason.GROUP_DELETED, "coder is gone")
    ready, stalled, _ = with_ready((failed,))
    assert ready[:3] == (ConditionType.READY, "False", ConditionReason.GROUP_DELETED)
    assert stalled[:3] == (ConditionType.STALLED, "True", ConditionReason.GROUP_DELETED)
