"""The keys with which the messages of a stream are signed: made, rotated, and brought to its agents."""

from __future__ import annotations

import secrets

from agentstream.protocol.routes import Consumes, Produces
from agentstream.protocol.signatures import encode_keys
from agentstream_operator.cluster.port import ClusterRefused, SigningKeys
from agentstream_operator.plan.access import AgentUse
from agentstream_operator.plan.findings import EventNote, Failure
from agentstream_operator.plan.signing import due_in, with_key
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.state.index import owner_of
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.reasons import ConditionReason

_SECRET_BYTES, _ID_BYTES = 32, 4
_TRY_AGAIN = 10.0


async def keep_keys(context: Context, stream: AgentStream) -> float | None:
    """Makes the keys that a signed stream lacks, and has its agents get those that there are.

    Returns:
        The seconds after which to look again, if that is known.
    """
    signing = stream.spec.signing
    if signing is None or signing.policy is SignaturePolicy.OFF or not managed(stream):
        return None
    memory, now = context.memory.streams[stream.key], context.now().timestamp()
    owner = owner_of(stream)
    found = await context.cluster.signing_keys(stream.key)
    keys = found.keys if found is not None else ()
    due = due_in(keys, signing.rotation, now)
    notices: tuple[EventNote, ...] = ()
    if due == 0:
        notices = await _reported(context, stream, had_none=not keys)
        secret, key_id = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_hex(_ID_BYTES)
        keys, due = with_key(keys, key_id, secret, signing.rotation, now), None
    wanted = SigningKeys(stream.key, keys, owner.uid)
    if wanted != found:
        try:
            await context.cluster.apply_signing_keys(wanted, owner)
        except ClusterRefused as error:
            _refused(context, stream, Failure(error.reason, str(error)))
            return _TRY_AGAIN
    _refused(context, stream, None)
    if memory.keys != keys:
        memory.keys = keys
        context.touch(context.agents_on(stream))
    await context.tell(stream, notices)
    return due


def entries_of(context: Context, use: AgentUse) -> dict[str, str]:
    """The keys that an agent is to have, by the streams' names."""
    ways: tuple[Produces | Consumes, ...] = (*use.produces, *use.consumes)
    signed = {way.stream for way in ways if way.signatures != SignaturePolicy.OFF}
    keys = {
        stream: context.memory.streams[ResourceKey("AgentStream", use.namespace, stream)].keys
        for stream in signed
    }
    return {stream: encode_keys(found) for stream, found in keys.items() if found}


def _refused(context: Context, stream: AgentStream, trouble: Failure | None) -> None:
    """Notes why the keys cannot be kept, or that they are, and has the status say so."""
    memory = context.memory.streams[stream.key]
    if memory.keys_refused != trouble:
        memory.keys_refused = trouble
        context.queue.add(stream.key, Priority.EVENT)


async def _reported(context: Context, stream: AgentStream, *, had_none: bool) -> tuple[EventNote, ...]:
    """What is to be told of a new key; nothing of a stream's first."""
    name = stream.metadata.name
    if not had_none:
        message = f"made a new key for {name}; senders use it when it has reached all agents"
        return (EventNote(ConditionReason.SIGNING_KEY_MADE, message),)
    for agent in context.agents_on(stream):
        known = await context.cluster.credentials(*agent)
        if known is not None and name in known.signing:
            message = f"the keys of {name} were gone, and others were made: what was signed before is refused"
            return (EventNote(ConditionReason.SIGNING_KEYS_LOST, message, warning=True),)
    return ()
