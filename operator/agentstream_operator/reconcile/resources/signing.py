"""Creates and rotates the signing keys of a stream, and hands them to its agents."""

from __future__ import annotations

import secrets

from agentstream.errors import SettingsError
from agentstream.protocol.routes import Consumes, Produces
from agentstream.protocol.signatures import Keys, SigningEntry, decode_signing, encode_signing
from agentstream_operator.cluster.port import ClusterRefused, SigningKeys
from agentstream_operator.plan.access import AgentUse
from agentstream_operator.plan.conditions import EventNote, Failure
from agentstream_operator.plan.signing import due_in, with_key
from agentstream_operator.plan.streams import managed
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.queue import Priority
from agentstream_operator.reconcile.state.index import owner_of
from agentstream_operator.reconcile.state.memory import StreamMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.agentstream import AgentStream, SignaturePolicy
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.reasons import ConditionReason

_SECRET_BYTES, _ID_BYTES = 32, 4
_RETRY = 10.0


async def reconcile_signing_keys(context: Context, stream: AgentStream) -> float | None:
    """Creates missing keys of a signed stream, and queues its agents if the keys changed.

    A stream that is signed no longer keeps its keys.

    Returns the seconds until the next time, if known.
    """
    signing = stream.spec.signing
    if not managed(stream):
        return None
    memory, now = context.state.memory.streams[stream.key], context.state.now().timestamp()
    owner = owner_of(stream)
    found = await context.cluster.signing_keys(stream.key)
    keys = found.keys if found is not None else ()
    if signing is None or signing.policy is SignaturePolicy.OFF:
        # whoever signs goes on: consumers whose Secret still has the former policy refuse what is not signed
        _take_up(context, stream, memory, keys)
        return None
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
    _take_up(context, stream, memory, keys)
    await context.emit(stream, events)
    return due


def signing_entries(state: State, use: AgentUse) -> dict[str, str]:
    """Returns policies and keys for an agent's Secret, by the streams' names; nothing if none is signed.

    Beside a signed stream all that the agent consumes are named: another one would be a way around it.
    """
    ways: tuple[Produces | Consumes, ...] = (*use.produces, *use.consumes)
    found = {}
    for way in ways:
        keys = state.memory.streams[ResourceKey("AgentStream", use.namespace, way.stream)].keys
        if keys or way.signatures != SignaturePolicy.OFF:
            found[way.stream] = SigningEntry(SignaturePolicy(way.signatures).value, keys)
    if found:
        found = {**{way.stream: SigningEntry() for way in use.consumes}, **found}
    return {stream: encode_signing(signing) for stream, signing in found.items()}


def _take_up(context: Context, stream: AgentStream, memory: StreamMemory, keys: Keys) -> None:
    """Notes the keys of a stream, and queues its agents if they changed."""
    if memory.keys != keys:
        memory.keys = keys
        context.requeue_agents(context.state.resources.agents_on(stream))


def _has_keys(text: str | None) -> bool:
    try:
        return text is not None and bool(decode_signing(text).keys)
    except SettingsError:
        return False


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
        if known is not None and _has_keys(known.signing.get(name)):
            message = (
                f"signing keys of {name} were lost; created a new one: messages signed with the lost keys"
                " fail verification"
            )
            return (EventNote(ConditionReason.SIGNING_KEYS_LOST, message, warning=True),)
    return ()
