"""Reconciles one StreamReplay: its phase, what is reported of it, and what it leaves behind."""

from __future__ import annotations

from datetime import UTC, datetime

from agentstream.protocol import replaying
from agentstream.protocol.replaying import ReplayOf
from agentstream_operator.broker.replay import last_entry, read_key
from agentstream_operator.plan.conditions import EventNote, unreachable
from agentstream_operator.plan.replay import (
    ReplayGiven,
    asked_by,
    expires_in,
    first_in_line,
    follow_again,
    is_ended,
    plan_replay,
    progress_numbers,
    reach,
    reported_reach,
    span_of,
    summary,
)
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.state.index import group_of, owner_of, stream_of
from agentstream_operator.reconcile.state.memory import ReplayMemory
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ReplayPhase, StreamReplayStatus
from agentstream_operator.resources.streamreplay import StreamReplay

_SOON, _LATER = 1.0, 5.0
"""Seconds until it is looked again for what a replay lacks: what is about to be there, or may come to be."""


async def reconcile_replay(context: Context, key: ResourceKey) -> float | None:
    """Reconciles a replay. Returns the seconds until the next time, if known.

    Raises:
        AgentStreamError: the server failed or refused.
    """
    state = context.state
    running = state.memory.running_replays
    await _forget_removed(context, key)
    replay = state.resources.replays.get(key)
    if replay is None or replay.deleting:
        running.discard(key)
        return None
    memory = state.memory.replays[key]
    before = memory.status
    if before is not None and is_ended(before):
        running.discard(key)
        return await _follow(context, replay, memory, before)
    if state.backend.outage is not None:
        return await context.status.write(replay, memory.reported, unreachable(state.backend.outage), {})
    given, now = await _given(context, replay, memory)
    plan = plan_replay(given, now)
    numbers = {"phase": plan.phase, **plan.numbers}
    again = await context.status.write(replay, memory.reported, plan.conditions, numbers)
    written = memory.status
    if written is not before:
        await context.emit(replay, plan.events)
    if plan.phase is ReplayPhase.RUNNING and written is not None and written.phase is plan.phase:
        running.add(key)
    else:
        running.discard(key)
    if written is not None and is_ended(written):
        # the next one of the group may begin
        others = state.resources.replays_of(group_of(replay))
        context.queue.add_all((other.key for other in others if other.key != key), Priority.EVENT)
        return await _follow(context, replay, memory, written)
    if given.missing is not None and written is not None and not is_ended(written):
        is_soon = given.missing.reason is ConditionReason.RECONCILING or not state.resources.complete
        return _SOON if is_soon else _LATER
    return again


async def _given(
    context: Context, replay: StreamReplay, memory: ReplayMemory
) -> tuple[ReplayGiven, datetime]:
    """Returns what is known of a replay, and the time."""
    state, status = context.state, memory.status
    begun = status is not None and status.started_at is not None
    now = state.now()
    group = state.resources.groups.get(group_of(replay))
    stream = state.resources.streams.get(stream_of(group)) if group is not None else None
    missing, last = _missing(context, replay, group, stream, begun=begun), ""
    if missing is None and group is not None and stream is not None and not begun:
        seen = await context.observer.observe(stream)
        now = datetime.fromtimestamp(seen.now / 1000, UTC)
        last = await last_entry(context.broker.call, read_key(replay.spec, group, stream))
        memory.reach = reach(replay.spec, seen, span_of(replay.spec, last))
    if memory.reach is None:
        memory.reach = reported_reach(memory.reported.conditions)
    others = [(other, state.memory.replays[other.key].status) for other in _others(context, replay)]
    first = first_in_line(replay, [(replay, status), *others])
    return (
        ReplayGiven(
            replay,
            status,
            missing,
            None if first is replay or first.key == replay.key else first,
            memory.reach,
            memory.progress,
            memory.at_end,
            memory.window_full,
            memory.problem,
            last,
        ),
        now,
    )


def _others(context: Context, replay: StreamReplay) -> list[StreamReplay]:
    found = context.state.resources.replays_of(group_of(replay))
    return [other for other in found if other.key != replay.key]


def _missing(  # noqa: PLR0911 - one for each thing that may be missing
    context: Context,
    replay: StreamReplay,
    group: ConsumerGroup | None,
    stream: AgentStream | None,
    *,
    begun: bool,
) -> EventNote | None:
    """Returns what a replay lacks; as a warning if it will not come back."""
    state, key = context.state, group_of(replay)
    is_gone = begun and state.resources.complete
    if group is None or group.deleting:
        if is_gone and state.resources.why_unreadable(key) is None:
            return EventNote(
                ConditionReason.GROUP_DELETED, f"ConsumerGroup {key.name} was deleted", warning=True
            )
        return EventNote(ConditionReason.GROUP_NOT_FOUND, f"there is no ConsumerGroup {key.name}")
    name = group.spec.stream_ref.name
    if stream is None or stream.deleting:
        if is_gone and state.resources.why_unreadable(stream_of(group)) is None:
            return EventNote(ConditionReason.STREAM_DELETED, f"AgentStream {name} was deleted", warning=True)
        return EventNote(ConditionReason.STREAM_MISSING, f"there is no AgentStream {name}")
    serves = state.memory.groups[key].serves
    if not serves and not begun:
        message = f"ConsumerGroup {key.name} is not in effect; its conditions say why"
        reason = ConditionReason.RECONCILING if serves is None else ConditionReason.GROUP_NOT_FOUND
        return EventNote(reason, message)
    if stream.signatures is SignaturePolicy.REQUIRE and not state.memory.streams[stream.key].keys:
        return EventNote(ConditionReason.RECONCILING, f"the signing keys of {name} are not known yet")
    return None


async def _follow(
    context: Context, replay: StreamReplay, memory: ReplayMemory, status: StreamReplayStatus
) -> float | None:
    """Follows what becomes of messages that were moved, and deletes the replay when its time is over."""
    state = context.state
    now = state.now()
    until = expires_in(replay, status, now)
    if until == 0:
        await context.cluster.delete_replay(owner_of(replay))
        return None
    again = follow_again(replay, status, now, state.options.status.progress)
    of = _of_server(context, replay)
    if again is not None and of is not None and state.backend.outage is None:
        found = replaying.parse_progress(await context.broker.call(*replaying.progress(of)))
        if found.cursor:
            memory.progress = found
            numbers = progress_numbers(found)
            wait = await context.status.write(replay, memory.reported, memory.reported.conditions, numbers)
            again = again if wait is None else min(again, wait)
    waits = [seconds for seconds in (until, again) if seconds is not None]
    return min(waits, default=None)


async def _forget_removed(context: Context, key: ResourceKey) -> None:
    """Removes what replays that are gone left on the server, and says what became of them."""
    state = context.state
    removed = state.memory.removed_replays.get(key)
    while removed and state.backend.outage is None:
        gone = removed[0]
        of = _of_server(context, gone)
        found = replaying.ReplayProgress()
        if of is not None:
            found = replaying.parse_progress(await context.broker.call(*replaying.progress(of)))
            await context.broker.call(*replaying.end(of))
        removed.pop(0)
        if not is_ended(gone.status) and found.cursor:
            said = f"deleted before its end: {summary(gone.spec, found)}; {asked_by(gone)}"
            await context.emit(gone, (EventNote(ConditionReason.REPLAY_STOPPED, said),))
    if not removed:
        state.memory.removed_replays.pop(key, None)


def _of_server(context: Context, replay: StreamReplay) -> ReplayOf | None:
    """Returns a replay as the server knows it; None without its group or stream, with which it went."""
    resources = context.state.resources
    group = resources.groups.get(group_of(replay))
    stream = resources.streams.get(stream_of(group)) if group is not None else None
    if group is None or stream is None:
        return None
    return ReplayOf(stream.stream_key, group.group_name, replay.replay_id)
