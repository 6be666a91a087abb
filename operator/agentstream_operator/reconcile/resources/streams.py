"""Reconciles one AgentStream: observe, plan, apply, status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentstream_operator.plan.agents import agents_of
from agentstream_operator.plan.contracts import digest_after
from agentstream_operator.plan.findings import NO_CONFLICT, Plan
from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.streams import StreamInput, plan_stream
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.resources.signing import keep_keys
from agentstream_operator.reconcile.status import rounded
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason


async def reconcile_stream(context: Context, key: ResourceKey) -> float | None:
    """Makes a stream as it is declared.

    Returns:
        The seconds after which to look again, if that is known.

    Raises:
        AgentStreamError: the server could not be asked, or refused.
    """
    stream = context.store.streams.get(key)
    if stream is None:
        return None
    seen, plan = await context.decide(stream, lambda seen: _plan(context, stream, seen))
    if plan.finalizer:
        await context.hold(stream, wanted=True)
    notices = await context.apply(key, plan)
    rotation = None
    if seen is not None:
        if _usable(seen, plan):
            # first, so that agents get stream and keys at once
            rotation = await keep_keys(context, stream)
        _remember(context, stream, seen, plan)
    await context.tell(stream, notices)
    if not plan.finalizer:
        await context.hold(stream, wanted=False)
    if plan.over:
        return None
    reported = context.memory.streams[key].reported
    if plan.actions:
        return context.check_again(stream)
    reported.rounds = 0
    again = await context.status.write(
        stream, reported, plan.findings, numbers_of_stream(context, stream, seen)
    )
    return min((wait for wait in (again, rotation) if wait is not None), default=None)


def _plan(context: Context, stream: AgentStream, seen: StreamSeen | None) -> Plan:
    memory = context.memory.streams[stream.key]
    agents = context.memory.state_of(agents_of(stream))
    if memory.keys_refused is not None:
        agents = replace(agents, failed=memory.keys_refused)
    return plan_stream(
        StreamInput(
            stream=stream,
            installation=context.installation,
            winner=context.store.winner(stream),
            groups=tuple(declared.name for declared in context.store.declared(stream.key)),
            seen=seen,
            added=memory.added,
            agents=agents,
            history=memory.history,
            eviction=context.backend.eviction,
            why_unreachable=context.backend.trouble or "",
            deleted_for=context.deleted_for(stream),
        )
    )


def _remember(context: Context, stream: AgentStream, seen: StreamSeen, plan: Plan) -> None:
    """Notes what came of a plan, and lets those look again whom it concerns."""
    memory = context.memory.streams[stream.key]
    usable = _usable(seen, plan)
    if usable:
        memory.added = seen.added
    elif NO_CONFLICT in plan.findings:
        memory.added = None
    readers = context.store.readers_of(stream.key)
    if any(notice.reason is ConditionReason.DATA_LOST for notice in plan.notices):
        for reader in readers:
            context.memory.groups[reader].stream_lost = True
    if usable != memory.usable or plan.actions:
        context.queue_all(readers, Priority.EVENT)
    contracts = digest_after(plan.actions, seen)
    if usable and contracts != memory.contracts:
        memory.contracts = contracts
        context.touch(context.agents_on(stream))
    if usable != memory.usable:
        memory.usable = usable
        context.touch(agents_of(stream))


def _usable(seen: StreamSeen, plan: Plan) -> bool:
    """Whether agents may use the stream."""
    return NO_CONFLICT in plan.findings and (seen.type == "stream" or bool(plan.actions))


def numbers_of_stream(context: Context, stream: AgentStream, seen: StreamSeen | None) -> dict[str, Any]:
    """What the status says besides its conditions."""
    if seen is None:
        return {"key": stream.stream_key}
    return {
        "key": stream.stream_key,
        "length": rounded(seen.length),
        "groups": len(context.store.declared(stream.key)),
        "oldest_entry": seen.first,
    }
