"""Creates and rotates the signing keys of a stream, and hands them to its agents."""

from __future__ import annotations

import secrets

from agentstream.protocol.routes import Consumes, Produces
from agentstream.protocol.signatures import encode_keys
from agentstream_operator.cluster.port import ClusterRefused, SigningKeys
from agentstream_operator.plan.access import AgentUse
from agentstream_operator.plan.conditions import EventNote, Failure
from agentstream_operator.plan.signing import due_in, with_key
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.state.index import owner_of
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.reasons import ConditionReason

_SECRET_BYTES, _ID_BYTES = 32, 4
_RETRY = 10.0


async def reconcile_signing_keys(context: Context, stream: AgentStream) -> float | None:
    """Creates missing keys of a signed stream, and queues its agents if the keys changed.

    Returns the seconds until the next time, if known.
    """
    signing = stream.spec.signing
    if signing is None or signing.policy is SignaturePolicy.OFF or not managed(stream):
        return None
    memory, now = context.state.memory.streams[stream.key], context.state.now().timestamp()
    owner = owner_of(stream)
    found = await context.cluster.signing_keys(stream.key)
    keys = found.keys if found is not None else ()
    due = due_in(keys, signing.rotation, now)
    events: tuple[EventNote, ...] = ()
    if due == 0:
        events = await _new_key_events(context, stream, first=not keys)
        secret, key_id = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_hex(_ID_BYTES)
        keys, due = with_key(keys, key_id, secret, signing.rotation, now), None
    wanted = SigningKeys(stream.key, keys, owner.uid)
    if wanted != found:
        try:
            await context.cluster.apply_signing_keys(wanted, owner)
        except ClusterRefused as error:
            _note_failure(context, stream, Failure(error.reason, str(error)))
            return _RETRY
    _note_failure(context, stream, None)
    if memory.keys != keys:
        memory.keys = keys
        context.requeue_agents(context.state.resources.agents_on(stream))
    await context.emit(stream, events)
    return due


def signing_entries(state: State, use: AgentUse) -> dict[str, str]:
    """Returns the keys for an agent's Secret, by the streams' names."""
    ways: tuple[Produces | Consumes, ...] = (*use.produces, *use.consumes)
    signed = {way.stream for way in ways if way.signatures != SignaturePolicy.OFF}
    keys = {
        stream: state.memory.streams[ResourceKey("AgentStream", use.namespace, stream)].keys
        for stream in signed
    }
    return {stream: encode_keys(found) for stream, found in keys.items() if found}


def _note_failure(context: Context, stream: AgentStream, failure: Failure | None) -> None:
    """Notes why the keys could not be written, or that they were, and queues the stream to report it."""
    memory = context.state.memory.streams[stream.key]
    if memory.keys_failure != failure:
        memory.keys_failure = failure
        context.queue.add(stream.key, Priority.EVENT)


async def _new_key_events(context: Context, stream: AgentStream, *, first: bool) -> tuple[EventNote, ...]:
    """Returns the event of a new key; none for the first key of a stream, unless earlier keys were lost."""
    name = stream.metadata.name
    if not first:
        message = f"created a new signing key for {name}; producers sign with it once all agents have it"
        return (EventNote(ConditionReason.SIGNING_KEY_MADE, message),)
    for agent in context.state.resources.agents_on(stream):
        known = await context.cluster.credentials(*agent)
        if known is not None and name in known.signing:
            message = (
                f"signing keys of {name} were lost; created a new one: messages signed with the lost keys"
                " fail verification"
            )
            return (EventNote(ConditionReason.SIGNING_KEYS_LOST, message, warning=True),)
    return ()
