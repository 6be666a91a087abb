"""What becomes of an entry before any handler sees it: a pure decision."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agentstream.entries import Entry
from agentstream.errors import InvalidMessage
from agentstream.message import BROADCAST, Message, decode
from agentstream.routes import Consumes


class Reason(StrEnum):
    """Why a message became a dead letter, where the handler gave no reason of its own."""

    MALFORMED = "Malformed"
    UNKNOWN_VERSION = "UnknownVersion"
    EXPIRED = "Expired"
    MAX_DELIVERIES = "MaxDeliveries"
    NO_HANDLER = "NoHandler"
    INVALID_PAYLOAD = "InvalidPayload"
    CONTRACT_VIOLATED = "ContractViolated"
    UNSIGNED = "Unsigned"
    FORGED = "Forged"
    UNKNOWN_KEY = "UnknownKey"
    REPLAYED = "Replayed"


class Deliver(msgspec.Struct, frozen=True):
    """A handler gets the message."""

    message: Message


class Skip(msgspec.Struct, frozen=True):
    """The message is for other agents: it is settled unseen."""


class GiveUp(msgspec.Struct, frozen=True):
    """The message cannot be handled, or not any more."""

    reason: str
    error: str


Verdict = Deliver | Skip | GiveUp


def triage(entry: Entry, policy: Consumes, agent: str, now: float) -> Verdict:
    """Decides about an entry that was read or claimed.

    Args:
        entry: as it came from the server.
        policy: of the group.
        agent: the name of this agent.
        now: seconds since 1970.
    """
    if entry.body is None:
        return GiveUp(Reason.MALFORMED, "the entry has no field `m`")
    try:
        message = decode(entry.body)
    except InvalidMessage as error:
        return GiveUp(error.reason, str(error))
    if not policy.deliver_all and message.to not in (agent, BROADCAST):
        return Skip()
    if is_expired(message, now):
        return GiveUp(Reason.EXPIRED, "expires_at was over before a handler was free")
    if entry.next_attempt > policy.max_deliveries and (policy.dead_letters or not entry.started):
        return GiveUp(Reason.MAX_DELIVERIES, f"{policy.max_deliveries} attempts began, and none succeeded")
    return Deliver(message)


def is_expired(message: Message, now: float) -> bool:
    """Whether the message lost its meaning before `now`, in seconds since 1970."""
    return message.expires_at is not None and message.expires_at <= now
