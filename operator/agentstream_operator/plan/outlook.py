"""What to think of before a replay is started."""

from __future__ import annotations

from agentstream_operator.plan.observed import StreamSeen
from agentstream_operator.plan.replay import IdRange, reach
from agentstream_operator.plan.selection import is_dead
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.streamreplay import ReplayAction, StreamReplaySpec


def warnings(
    spec: StreamReplaySpec, stream: AgentStream, seen: StreamSeen, name: str, span: IdRange, *, has_keys: bool
) -> tuple[str, ...]:
    """Returns what to think of before a replay is started, a sentence each.

    Args:
        spec: of the replay.
        stream: of the group.
        seen: as the stream is now.
        name: of the group.
        span: what the replay would look at.
        has_keys: whether the signing keys of the stream are known here.
    """
    found: list[str] = []
    lost = reach(spec, seen, span)
    if lost is not None:
        found.append(lost.message)
    if spec.action is ReplayAction.DROP:
        return (*found, "what is removed cannot be brought back")
    group = seen.groups.get(name)
    if group is None or not group.exists:
        return (*found, f"the group {name} is not on the stream; the replay would wait for it")
    retries = group.retry_length + group.delayed
    if not is_dead(spec):
        if group.pending or retries:
            held = f"the group is working on {group.pending:,} messages and tries {retries:,} again"
            found.append(f"{held}: those of them that match are left out if that is still so then")
        found.append("effects that handlers guard with once() are not repeated")
    if group.retry_length >= spec.window:
        found.append(f"the group has {group.retry_length:,} retries, so the replay would hold: see window")
    if not group.consumers:
        found.append("the group has no consumers at present")
    if stream.signatures is SignaturePolicy.REQUIRE and not has_keys:
        found.append(
            "what was signed with a key that is gone is not told from the rest here, and is left out"
        )
    return tuple(found)
