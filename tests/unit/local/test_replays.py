"""Replays as files: made by hand or by manifests, changed, deleted, and never carried out twice."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream_operator.cluster.port import ClusterUnavailable, Owner
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.queue_api.ports import Caller, ReplayRefused, Unavailable
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import parse_resource
from agentstream_operator.resources.status import (
    ConditionReason,
    ConditionType,
    ReplayPhase,
    StreamReplayStatus,
    set_condition,
)
from agentstream_operator.resources.streamreplay import StreamReplay
from support.examples import examples
from unit.resources import manifests

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADA = Caller("ada")
AGAIN = ResourceKey("StreamReplay", "default", "again")


def a_replay(name: str = "again", **spec: Any) -> StreamReplay:
    """A replay as it is asked for."""
    found = parse_resource(manifests.a_replay(name, **spec))
    assert isinstance(found, StreamReplay)
    return found


class Run:
    """A run of `agentstream dev`: the replays of a data directory, and what became of them.

    Attributes:
        engine: names and uids of what was put in or removed, in order.
        said: the lines that were shown.
    """

    def __init__(self, folder: Path) -> None:
        self.engine: list[str] = []
        self.said: list[str] = []
        self.replays = LocalReplays(folder, output=self, now=lambda: NOW)

    def say(self, text: str) -> None:
        self.said.append(text)

    def relay(self, _name: str, _text: str) -> None:
        raise AssertionError

    def put(self, replay: StreamReplay) -> None:
        self.engine.append(f"put {replay.metadata.name} {replay.metadata.generation}")

    def remove(self, key: ResourceKey) -> None:
        self.engine.append(f"remove {key.name}")

    def declare(self, *declared: StreamReplay) -> None:
        self.replays.declare({replay.key: replay for replay in declared})

    def attach(self) -> None:
        engine: Any = self
        self.replays.attach(engine)

    async def uid(self, key: ResourceKey = AGAIN) -> str | None:
        """The uid of a replay, if there is one."""
        found = await self.replays.get(key)
        return found.metadata.uid if found is not None else None


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], Run]:
    """Starts another run with the same data."""

    def start() -> Run:
        run = Run(tmp_path / "replays")
        run.attach()
        return run

    return start


def ended() -> StreamReplayStatus:
    """The status of a replay that is over."""
    ready = (ConditionType.READY, "True", ConditionReason.REPLAY_FINISHED, "moved 7 of 7")
    conditions = set_condition((), *ready, generation=1, now=NOW)
    return StreamReplayStatus(
        observed_generation=1,
        conditions=conditions,
        phase=ReplayPhase.COMPLETE,
        moved=7,
        skipped={"expired": 2},
        finished_at=NOW,
    )


async def test_a_replay_is_kept_with_who_asked_for_it(start: Callable[[], Run], tmp_path: Path) -> None:
    run = start()
    made = await run.replays.create(ADA, a_replay(reason="INC-4711"))
    assert made is not None
    assert made.requested_by == "ada"
    assert made.metadata.creation_timestamp == NOW
    assert run.engine == ["put again 1"]
    file = tmp_path / "replays" / "default.again.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_bytes())["spec"]["reason"] == "INC-4711"
    again = start()
    assert await again.replays.get(AGAIN) == made
    assert again.engine == ["put again 1"]


async def test_a_name_is_given_once_and_another_replay_of_it_has_another_uid(
    start: Callable[[], Run],
) -> None:
    run = start()
    first = await run.replays.create(ADA, a_replay())
    assert first is not None
    assert await run.replays.create(ADA, a_replay(rate=7)) is None
    assert await run.replays.delete(ADA, AGAIN)
    assert not await run.replays.delete(ADA, AGAIN)
    second = await run.replays.create(ADA, a_replay())
    assert second is not None
    assert second.replay_id != first.replay_id
    assert run.engine == ["put again 1", "remove again", "put again 1"]


async def test_who_changes_or_deletes_a_replay_is_shown_with_the_reason(start: Callable[[], Run]) -> None:
    run = start()
    await run.replays.create(ADA, a_replay())
    await run.replays.patch(ADA, AGAIN, {"suspend": True, "rate": None}, "too\nfast")
    await run.replays.delete(ADA, AGAIN)
    assert not await run.replays.delete(ADA, AGAIN)
    assert run.said == [
        f'{AGAIN}: {{"rate":null,"suspend":true}} changed by ada: too\\nfast',
        f"{AGAIN}: deleted by ada: no reason given",
    ]


async def test_replays_of_one_moment_have_an_order_that_lasts(start: Callable[[], Run]) -> None:
    run = start()
    for name in ("c", "a", "b"):
        await run.replays.create(ADA, a_replay(name))

    async def by_age(run: Run) -> list[str]:
        found = await run.replays.list("")
        assert all(replay.metadata.creation_timestamp is not None for replay in found)
        return [r.metadata.name for r in sorted(found, key=lambda r: str(r.metadata.creation_timestamp))]

    assert await by_age(run) == await by_age(start()) == ["c", "a", "b"]


async def test_they_are_listed_by_namespace(start: Callable[[], Run]) -> None:
    run = start()
    other = {**manifests.a_replay("other"), "metadata": {"name": "other", "namespace": "team"}}
    found = parse_resource(other)
    assert isinstance(found, StreamReplay)
    await run.replays.create(ADA, found)
    await run.replays.create(ADA, a_replay())
    assert [replay.key.name for replay in await run.replays.list("")] == ["again", "other"]
    assert [replay.key.name for replay in await run.replays.list("team")] == ["other"]
    assert await run.replays.list("nowhere") == []


async def test_the_pace_is_changed_and_what_is_not_named_stays(start: Callable[[], Run]) -> None:
    run = start()
    await run.replays.create(ADA, a_replay(rate=7))
    changed = await run.replays.patch(ADA, AGAIN, {"suspend": True, "rate": None})
    assert changed is not None
    assert (changed.spec.suspend, changed.spec.rate, changed.metadata.generation) == (True, 100, 2)
    assert await start().replays.get(AGAIN) == changed
    assert run.engine == ["put again 1", "put again 2"]
    assert await run.replays.patch(ADA, AGAIN._replace(name="nobody"), {"rate": 1}) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reason": "another"}, "spec.reason: reason is immutable: create another resource instead"),
        ({"rate": 0}, "spec.rate: must be at least 1, not 0"),
        ({"speed": 1}, "spec.speed: unknown field"),
    ],
)
async def test_a_change_that_is_refused_changes_nothing(
    start: Callable[[], Run], change: dict[str, Any], why: str
) -> None:
    run = start()
    made = await run.replays.create(ADA, a_replay())
    with pytest.raises(ReplayRefused) as refused:
        await run.replays.patch(ADA, AGAIN, change)
    assert str(refused.value).startswith(why)
    assert refused.value.status == 422
    assert await run.replays.get(AGAIN) == made


async def test_a_status_outlives_the_process_and_another_phase_is_shown(start: Callable[[], Run]) -> None:
    run = start()
    await run.replays.create(ADA, a_replay())
    about = Owner(AGAIN, str(await run.uid()))
    run.replays.set_status(about, ended())
    run.replays.set_status(about, ended().model_copy(update={"handled": 7}))
    assert run.said == ["StreamReplay default/again: Complete: moved 7 of 7"]
    found = await start().replays.get(AGAIN)
    assert found is not None
    assert found.status is not None
    assert (found.status.handled, found.status.skipped) == (7, {"expired": 2})
    # the engine has it from itself
    assert run.engine == ["put again 1"]


async def test_what_concerns_a_former_replay_of_the_name_is_ignored(start: Callable[[], Run]) -> None:
    run = start()
    made = await run.replays.create(ADA, a_replay())
    former = Owner(AGAIN, "former")
    run.replays.set_status(former, ended())
    run.replays.remove(former)
    assert await run.replays.get(AGAIN) == made
    run.replays.remove(Owner(AGAIN, str(await run.uid())))
    assert await run.replays.get(AGAIN) is None
    assert await start().replays.list("") == []


async def test_what_a_manifest_declares_is_one_replay_however_often_it_is_read(
    start: Callable[[], Run],
) -> None:
    run = start()
    run.declare(a_replay())
    uid = await run.uid()
    run.declare(a_replay())
    again = start()
    # nobody knows yet which manifests this run has
    assert (again.engine, await again.uid()) == ([], None)
    again.declare(a_replay(rate=7))
    assert (again.engine, await again.uid()) == (["put again 2"], uid)
    assert run.engine == ["put again 1"]


async def test_what_no_manifest_declares_any_more_is_deleted_and_may_come_again(
    start: Callable[[], Run],
) -> None:
    run = start()
    run.declare(a_replay())
    uid = await run.uid()
    run.declare()
    assert run.engine == ["put again 1", "remove again"]
    run.declare(a_replay())
    assert await run.uid() not in {uid, None}


async def test_a_run_with_other_manifests_deletes_nothing(start: Callable[[], Run]) -> None:
    run = start()
    run.declare(a_replay())
    uid = await run.uid()
    start().declare(a_replay("other"))
    later = start()
    later.declare(a_replay())
    assert await later.uid() == uid


async def test_what_was_deleted_after_its_time_is_not_carried_out_again(start: Callable[[], Run]) -> None:
    run = start()
    run.declare(a_replay(ttlSecondsAfterFinished=0))
    run.replays.remove(Owner(AGAIN, str(await run.uid())))
    run.declare(a_replay(ttlSecondsAfterFinished=0))
    later = start()
    later.declare(a_replay(ttlSecondsAfterFinished=0))
    assert run.engine == ["put again 1", "remove again"]
    assert later.engine == []
    assert await later.replays.list("") == []
    # but another one of that name is
    later.declare(a_replay(limit=1))
    assert later.engine == ["put again 1"]


async def test_a_manifest_may_not_change_what_is_immutable(start: Callable[[], Run]) -> None:
    run = start()
    run.declare(a_replay(limit=1))
    assert run.replays.refused(a_replay(limit=2)) == (
        "spec.limit: limit is immutable: create another resource instead",
    )
    assert run.replays.refused(a_replay(limit=1, rate=7)) == ()
    assert run.replays.refused(a_replay("new", limit=2)) == ()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "default.again.json",
            "{",
            "default.again.json: is not the file of a replay; delete it, or repair it: ",
        ),
        (
            "default.again.json",
            json.dumps({**manifests.a_replay(), "spec": {}}),
            "StreamReplay default/again: spec.groupRef: is required",
        ),
        (
            "default.other.json",
            json.dumps(manifests.a_replay()),
            "is not the file of StreamReplay default/again; delete it, or rename it",
        ),
        (
            "default.tasks.json",
            json.dumps(manifests.a_stream()),
            "is not the file of AgentStream default/tasks; delete it",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LocalError) as refused:
        Run(tmp_path)
    assert why in str(refused.value)
    assert len(refused.value.lines) == 1


async def test_where_nothing_can_be_written_nothing_is_promised(tmp_path: Path) -> None:
    folder = tmp_path / "replays"
    run = Run(folder)
    made = await run.replays.create(ADA, a_replay())
    assert made is not None
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(Unavailable, match="cannot write to"):
        await run.replays.create(ADA, a_replay("other"))
    with pytest.raises(Unavailable, match="cannot write to"):
        await run.replays.patch(ADA, AGAIN, {"rate": 1})
    with pytest.raises(Unavailable, match="cannot write to"):
        await run.replays.delete(ADA, AGAIN)
    with pytest.raises(ClusterUnavailable, match="cannot write to"):
        run.replays.set_status(Owner(AGAIN, made.metadata.uid), ended())
    with pytest.raises(ClusterUnavailable, match="cannot write to"):
        run.replays.remove(Owner(AGAIN, made.metadata.uid))
    with pytest.raises(LocalError, match="cannot write to"):
        run.declare(a_replay("declared"))
    assert [replay.key for replay in await run.replays.list("")] == [AGAIN]


def test_the_clock_may_go_back(tmp_path: Path) -> None:
    times = iter([NOW, NOW - timedelta(hours=1)])
    run = Run(tmp_path)
    run.replays = LocalReplays(tmp_path, output=run, now=lambda: next(times))
    run.declare(a_replay("a"), a_replay("b"))
    first, second = (
        datetime.fromisoformat(json.loads(file.read_bytes())["metadata"]["creationTimestamp"])
        for file in sorted(tmp_path.glob("*.json"))
    )
    assert first < second


NAMES = ("a", "b")
steps = st.one_of(
    st.tuples(st.just("declare"), st.frozensets(st.sampled_from(NAMES))),
    st.tuples(st.sampled_from(["create", "delete", "finish"]), st.sampled_from(NAMES)),
    st.tuples(st.just("restart"), st.none()),
)


@given(st.lists(steps, max_size=20))
@settings(max_examples=examples(100))
def test_none_is_carried_out_again_unless_somebody_asked_for_it_again(plan: list[tuple[str, Any]]) -> None:
    asyncio.run(carried_out(plan))


async def carried_out(plan: list[tuple[str, Any]]) -> None:
    with TemporaryDirectory() as directory:
        run = Run(Path(directory))
        run.attach()
        declared: frozenset[str] = frozenset()
        # how often somebody asked for each, and which were seen
        asked: Counter[str] = Counter()
        seen: dict[str, set[str]] = {name: set() for name in NAMES}
        # those that a manifest of some run has asked for
        known: set[str] = set()
        for step, what in plan:
            key = AGAIN._replace(name=str(what))
            if step == "declare":
                asked.update(what - known - {r.key.name for r in await run.replays.list("")})
                known = (known - declared) | what
                declared = what
                run.declare(*(a_replay(name) for name in sorted(what)))
            elif step == "create":
                if await run.replays.create(ADA, a_replay(what)) is not None:
                    asked[what] += 1
                    known.discard(what)
            elif step == "restart":
                run, declared = Run(Path(directory)), frozenset()
                run.attach()
            elif step == "delete":
                await run.replays.delete(ADA, key)
            elif (uid := await run.uid(key)) is not None:
                run.replays.remove(Owner(key, uid))
            for replay in await run.replays.list(""):
                seen[replay.key.name].add(replay.metadata.uid)
        for name in NAMES:
            assert len(seen[name]) <= asked[name], (name, plan)
