"""What becomes of an entry before any handler sees it: a pure decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from agentstream.consuming.hold import CLAIMED, Hold
from agentstream.errors import InvalidMessage
from agentstream.protocol.entry import Entry
from agentstream.protocol.envelope import BROADCAST, Message, decode
from agentstream.protocol.reasons import FLAWS, Reason
from agentstream.protocol.routes import OFF, WARN, Consumes


class Deliver(msgspec.Struct, frozen=True):
    """A handler gets the message.

    Attributes:
        message: what it gets.
        payload: the message's, read as the handler wants it.
        flaw: what is wrong with the signature, where the group only warns of that.
    """

    message: Message
    payload: Any
    flaw: Reason | None = None


class Skip(msgspec.Struct, frozen=True):
    """The message is for other agents: it is settled unseen."""


class GiveUp(msgspec.Struct, frozen=True):
    """The message cannot be handled, or not any more."""

    reason: str
    error: str


class Defer(msgspec.Struct, frozen=True):
    """It cannot be decided yet.

    Attributes:
        delay: seconds until it is looked at again.
        reason: what it will be given up for if that does not change.
        error: why.
    """

    delay: float
    reason: str
    error: str


Verdict = Deliver | Skip | GiveUp | Defer

_KEY_PATIENCE, _KEY_DELAY = 300.0, 30.0


def triage(  # noqa: PLR0911 - one per verdict
    hold: Hold,
    policy: Consumes,
    agent: str,
    now: float,
    *,
    flaw_of: Callable[[Entry], Reason | None],
    read: Callable[[Message], Any],
) -> Verdict:
    """Decides about an entry that was read or claimed.

    Args:
        hold: of the entry.
        policy: of the group.
        agent: the name of this agent.
        now: seconds since 1970.
        flaw_of: what is wrong with an entry's signature.
        read: reads the payload of a message as its handler wants it, or raises InvalidMessage.
    """
    entry = hold.entry
    if entry.body is None:
        return GiveUp(Reason.MALFORMED, "the entry has no field `m`")
    flaw = None if policy.signatures == OFF else flaw_of(entry)
    if flaw is not None and policy.signatures != WARN:
        return _refused(entry, flaw, now)
    try:
        message = decode(entry.body)
    except InvalidMessage as error:
        return GiveUp(error.reason, str(error))
    if not policy.deliver_all and message.to not in (agent, BROADCAST):
        return Skip()
    if message.expires_at is not None and is_expired(message, now):
        return GiveUp(Reason.EXPIRED, "expires_at was over before a handler was free")
    if hold.next_attempt > policy.max_deliveries and (policy.dead_letters or hold.state is CLAIMED):
        return GiveUp(Reason.MAX_DELIVERIES, f"{policy.max_deliveries} attempts began, and none succeeded")
    try:
        return Deliver(message, read(message), flaw)
    except InvalidMessage as error:
        return GiveUp(error.reason, str(error))


def _refused(entry: Entry, flaw: Reason, now: float) -> GiveUp | Defer:
    """What becomes of an entry without a valid signature. A key that is not known may be on its way."""
    age = now - entry.added
    if flaw is Reason.UNKNOWN_KEY and (age < _KEY_PATIENCE or not entry.source.retry):
        # as long again as it has waited, so that no count of tries has to be kept
        delay = min(max(age, 1.0), _KEY_DELAY) if entry.source.retry else 1.0
        return Defer(delay, flaw, FLAWS[flaw])
    return GiveUp(flaw, FLAWS[flaw])


def is_expired(message: Message, now: float) -> bool:
    """Whether the message lost its meaning before `now`, in seconds since 1970."""
    return message.expires_at is not None and message.expires_at <= now
