"""What becomes of an entry before any handler sees it: a pure decision."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

from agentstream.entries import Entry
from agentstream.errors import InvalidMessage
from agentstream.message import BROADCAST, Message, decode
from agentstream.routes import OFF, WARN, Consumes


class Reason(StrEnum):
    """Why a message became a dead letter, where the handler gave no reason of its own.

    `NO_ROUTE`: it returned an answer, and no stream leads to whoever sent the message.
    """

    MALFORMED = "Malformed"
    UNKNOWN_VERSION = "UnknownVersion"
    EXPIRED = "Expired"
    MAX_DELIVERIES = "MaxDeliveries"
    NO_HANDLER = "NoHandler"
    NO_ROUTE = "NoRoute"
    INVALID_PAYLOAD = "InvalidPayload"
    CONTRACT_VIOLATED = "ContractViolated"
    UNSIGNED = "Unsigned"
    FORGED = "Forged"
    UNKNOWN_KEY = "UnknownKey"
    REPLAYED = "Replayed"


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


class Later(msgspec.Struct, frozen=True):
    """It cannot be decided yet.

    Attributes:
        delay: seconds until it is looked at again.
        reason: what it will be given up for if that does not change.
        error: why.
    """

    delay: float
    reason: str
    error: str


Verdict = Deliver | Skip | GiveUp | Later

_KEY_PATIENCE, _KEY_DELAY = 300.0, 30.0
FLAWS: Final = {
    Reason.UNSIGNED: "the group takes signed messages only",
    Reason.FORGED: "the signature does not fit the message and its stream",
    Reason.UNKNOWN_KEY: "the message is signed with a key that this agent does not have",
    Reason.REPLAYED: "the message was signed for another time, or came before: it is a copy",
}
"""What can be wrong with a signature, in words."""


def triage(  # noqa: PLR0911 - one per verdict
    entry: Entry,
    policy: Consumes,
    agent: str,
    now: float,
    *,
    flaw_of: Callable[[Entry], Reason | None],
    read: Callable[[Message], Any],
) -> Verdict:
    """Decides about an entry that was read or claimed.

    Args:
        entry: as it came from the server.
        policy: of the group.
        agent: the name of this agent.
        now: seconds since 1970.
        flaw_of: what is wrong with an entry's signature.
        read: reads the payload of a message as its handler wants it, or raises InvalidMessage.
    """
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
    if entry.next_attempt > policy.max_deliveries and (policy.dead_letters or not entry.started):
        return GiveUp(Reason.MAX_DELIVERIES, f"{policy.max_deliveries} attempts began, and none succeeded")
    try:
        return Deliver(message, read(message), flaw)
    except InvalidMessage as error:
        return GiveUp(error.reason, str(error))


def _refused(entry: Entry, flaw: Reason, now: float) -> GiveUp | Later:
    """What becomes of an entry without a valid signature. A key that is not known may be on its way."""
    age = now - entry.added
    if flaw is Reason.UNKNOWN_KEY and (age < _KEY_PATIENCE or not entry.source.retry):
        # as long again as it has waited, so that no count of tries has to be kept
        delay = min(max(age, 1.0), _KEY_DELAY) if entry.source.retry else 1.0
        return Later(delay, flaw, FLAWS[flaw])
    return GiveUp(flaw, FLAWS[flaw])


def is_expired(message: Message, now: float) -> bool:
    """Whether the message lost its meaning before `now`, in seconds since 1970."""
    return message.expires_at is not None and message.expires_at <= now
