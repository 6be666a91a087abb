"""What became of a message in a group, from where the server has it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from agentstream.printable import printable
from agentstream.protocol.entry import position
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.keys import parse_replay
from agentstream.protocol.whereabouts import Holder, RetryAt, Whereabouts
from agentstream_operator.plan.letters import LONGEST_ERROR, LONGEST_REASON, Letter

_MOST: Final = 10**15
_LONGEST_NAME: Final = 300


class MessageState(StrEnum):
    """What became of a message in a group; the HTTP API says of each what it means."""

    WAITING = "Waiting"
    HELD = "Held"
    RETRYING = "Retrying"
    DELAYED = "Delayed"
    DEAD = "Dead"
    ACKNOWLEDGED = "Acknowledged"
    NOT_ADDRESSED = "NotAddressed"
    MISSING = "Missing"
    UNKNOWN = "Unknown"


class Fate(msgspec.Struct, frozen=True):
    """What became of a message in a group; what is not known, or makes no sense in a state, is None.

    Attributes:
        state: in a word.
        consumer: the name of the consumer that holds it.
        idle: ms since its lease was renewed last.
        attempts: how often it was tried, with an attempt that runs.
        due: when its next attempt is due, in ms since 1970.
        reason, error: what the latest attempt ended with.
        letter: id of its dead letter.
        replay: name of the StreamReplay by which the group has it again.
    """

    state: MessageState
    consumer: str | None = None
    idle: int | None = None
    attempts: int | None = None
    due: int | None = None
    reason: str | None = None
    error: str | None = None
    letter: str | None = None
    replay: str | None = None


def is_settled(where: Whereabouts, entry_id: str) -> bool:
    """Whether only dead letters can tell more: a group has got a message, and works on it no longer."""
    return (
        where.last is not None
        and where.holder is None
        and where.retry is None
        and where.is_complete
        and position(entry_id) <= position(where.last)
    )


def fate_of(
    entry_id: str,
    where: Whereabouts,
    letter: Letter | None = None,
    *,
    is_for_group: bool = True,
    are_all_letters: bool = True,
) -> Fate:
    """Decides what became of a message in a group.

    Args:
        entry_id: of the message on the stream.
        where: where the server has it.
        letter: its dead letter, looked for after `where` was asked; None if none was found.
        is_for_group: whether it is addressed to the group's agent.
        are_all_letters: whether all dead letters were looked at.
    """
    if where.holder is not None:
        return _held(where.holder)
    if where.retry is not None:
        return _again(where.retry)
    if where.last is not None and position(entry_id) > position(where.last):
        return Fate(MessageState.WAITING if where.is_there else MessageState.MISSING)
    if letter is not None:
        return _dead(letter)
    if where.last is None or not where.is_complete or not are_all_letters:
        return Fate(MessageState.UNKNOWN)
    return Fate(MessageState.ACKNOWLEDGED if is_for_group else MessageState.NOT_ADDRESSED)


def is_addressed(to: str | None, agent: str | None) -> bool:
    """Whether a message to somebody is for a group of an agent; None: for a group that gets everything."""
    return agent is None or to in (agent, BROADCAST, "", None)


def _held(holder: Holder, earlier: int = 0) -> Fate:
    return Fate(
        MessageState.HELD,
        consumer=printable(holder.consumer, _LONGEST_NAME),
        idle=holder.idle,
        attempts=earlier + holder.deliveries,
    )


def _again(retry: RetryAt) -> Fate:
    header = retry.header
    attempts = header.attempts if _is_count(header.attempts) else None
    if retry.holder is not None:
        fate = _held(retry.holder, attempts or 0)
    else:
        # what is due moves to the retry stream
        state = MessageState.DELAYED if retry.id is None else MessageState.RETRYING
        fate = Fate(state, attempts=attempts, due=retry.due)
    return msgspec.structs.replace(
        fate,
        reason=_text(header.reason, LONGEST_REASON),
        error=_text(header.error, LONGEST_ERROR),
        replay=parse_replay(header.replay),
    )


def _dead(letter: Letter) -> Fate:
    return Fate(
        MessageState.DEAD,
        attempts=letter.attempts,
        reason=letter.reason,
        error=letter.error or None,
        letter=letter.id,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _text(value: object, longest: int) -> str | None:
    return printable(value, longest) or None if isinstance(value, str) else None
