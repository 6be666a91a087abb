"""Reconciles one StreamReplay: status."""

from __future__ import annotations

from agentstream_operator.plan.conditions import ConditionUpdate, unreachable, with_ready
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.state.index import group_of
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason, ConditionType, ReplayPhase


async def reconcile_replay(context: Context, key: ResourceKey) -> float | None:
    """Reconciles a replay. Returns the seconds until the next time, if known."""
    state = context.state
    replay = state.resources.replays.get(key)
    if replay is None:
        state.memory.removed_replays.pop(key, None)
        return None
    reported = state.memory.replays[key].reported
    if state.backend.outage is not None:
        return await context.status.write(replay, reported, unreachable(state.backend.outage), {})
    reason, why = ConditionReason.RECONCILING, "the replay is about to begin"
    if group_of(replay) not in state.resources.groups:
        name = replay.spec.group_ref.name
        reason, why = ConditionReason.GROUP_NOT_FOUND, f"there is no ConsumerGroup {name} in this namespace"
    waits = ConditionUpdate(ConditionType.SYNCED, "False", reason, why)
    return await context.status.write(replay, reported, with_ready((waits,)), {"phase": ReplayPhase.PENDING})
