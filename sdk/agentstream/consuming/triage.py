"""Triage: decides what becomes of an entry before any handler gets it. A pure decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from agentstream.consuming.hold import CLAIMED, Hold
from agentstream.consuming.isolation import is_exhausted
from agentstream.errors import InvalidMessage
from agentstream.protocol.entry import Entry
from agentstream.protocol.envelope import BROADCAST, Message, decode
from agentstream.protocol.reasons import FLAWS, Reason
from agentstream.protocol.routes import OFF, WARN, Consumes


class Count(msgspec.Struct, frozen=True):
    """Counts an attempt before the message is read: to read it may be what ended an earlier process."""


class Deliver(msgspec.Struct, frozen=True):
    """Delivers the message to a handler; `flaw` is of its signature, if the group only warns of that."""

    message: Message
    payload: Any
    flaw: Reason | None = None


class Skip(msgspec.Struct, frozen=True):
    """Acknowledges the message, as it is addressed to other agents."""


class Undeliverable(msgspec.Struct, frozen=True):
    """Makes the message a dead letter, as it cannot be handled, or not any more."""

    reason: str
    error: str


class Defer(msgspec.Struct, frozen=True):
    """Delivers the message again after `delay` seconds, as it cannot be decided yet.

    The reason is that of the dead letter that it becomes if nothing changes.
    """

    delay: float
    reason: str
    error: str


EXPIRED = Undeliverable(Reason.EXPIRED, "expires_at passed before a handler was free")

Verdict = Count | Deliver | Skip | Undeliverable | Defer

_KEY_PATIENCE, _KEY_DELAY = 300.0, 30.0


def triage(  # noqa: PLR0911 - one per verdict
    hold: Hold,
    policy: Consumes,
    now: float,
    *,
    agent: str,
    read: Callable[[Message], Any],
) -> Verdict:
    """Decides what becomes of an entry that was read or claimed, `now` in seconds since 1970.

    `read` reads the payload of a message as its
    handler wants it, or raises InvalidMessage.
    """
    entry = hold.entry
    if entry.size > policy.max_message_bytes:
        what = f"the message has {entry.size} bytes, and the stream takes {policy.max_message_bytes} at most"
        return Undeliverable(Reason.TOO_LARGE, what)
    if entry.body is None:
        return Undeliverable(Reason.MALFORMED, "the entry has no field `m`")
    if hold.state is CLAIMED:
        return _exhausted(hold) if is_exhausted(hold, policy.max_deliveries) else Count()
    flaw = None if policy.signatures == OFF else hold.flaw
    if flaw is not None and policy.signatures != WARN:
        return _refused(entry, flaw, now)
    try:
        message = decode(entry.body)
    except InvalidMessage as error:
        return Undeliverable(error.reason, str(error))
    if not policy.deliver_all and message.to not in (agent, BROADCAST):
        return Skip()
    if is_over(hold, message, now):
        return EXPIRED
    if policy.dead_letters and is_exhausted(hold, policy.max_deliveries):
        return _exhausted(hold)
    try:
        return Deliver(message, read(message), flaw)
    except InvalidMessage as error:
        return Undeliverable(error.reason, str(error))


def _exhausted(hold: Hold) -> Undeliverable:
    made = f"{hold.next_attempt - 1} attempts were made, and none succeeded"
    what = f"{made}: the logs have errors, or processes that ended"
    return Undeliverable(Reason.MAX_DELIVERIES, what)


def _refused(entry: Entry, flaw: Reason, now: float) -> Undeliverable | Defer:
    """Decides about an entry without a valid signature. The Secret with an unknown key may still come."""
    age = now - entry.added
    if flaw is Reason.UNKNOWN_KEY and (age < _KEY_PATIENCE or not entry.source.retry):
        # doubles its age, so that no count of tries has to be kept
        delay = min(max(age, 1.0), _KEY_DELAY) if entry.source.retry else 1.0
        return Defer(delay, flaw, FLAWS[flaw])
    return Undeliverable(flaw, FLAWS[flaw])


def is_over(hold: Hold, message: Message, now: float) -> bool:
    """Whether the message lost its meaning before `now`, in seconds since 1970.

    What was replayed is delivered all the same: whoever replayed it decided about that.
    """
    return message.expires_at is not None and message.expires_at <= now and hold.entry.replay is None
