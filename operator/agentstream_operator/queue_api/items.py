"""Describes entries as messages: whatever their senders have written, it can be shown, and is bounded."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from agentstream.errors import InvalidMessage
from agentstream.printable import printable
from agentstream.protocol.entry import Entry, position
from agentstream.protocol.envelope import Message, decode
from agentstream_operator.queue_api.documents import MessageItem

LARGEST_IN_PAGE: Final = 16_384
"""Bytes of the largest message whose payload a page of messages has."""

_DEEPEST = 64
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def time_of(entry_id: str | None) -> datetime | None:
    """The time in an entry id; None if there is none in it."""
    milliseconds, _ = position(entry_id)
    return time_at(milliseconds / 1000) if milliseconds else None


def time_at(seconds: float | None) -> datetime | None:
    """A time in seconds since 1970; None if no calendar has it."""
    if seconds is None or not 0 <= seconds < _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def message_item(entry: Entry, *, largest: int = LARGEST_IN_PAGE, payload: bool = True) -> MessageItem:
    """Describes an entry; without its payload if that is larger than `largest` bytes, or not wanted."""
    at = time_of(entry.id)
    if entry.withheld or entry.body is None:
        why = "it is too large to be read here" if entry.withheld else "it has no field m: it is no message"
        return MessageItem(entry=entry.id, at=at, size=entry.size, problem=why)
    try:
        message = decode(entry.body)
    except InvalidMessage as error:
        return MessageItem(
            entry=entry.id, at=at, size=entry.size, problem=printable(f"it cannot be read: {error}", 300)
        )
    problem = _why_not(message, entry, largest) if payload else None
    data = message.payload if payload and problem is None else None
    return MessageItem(
        entry=entry.id,
        at=at,
        size=entry.size,
        id=message.id,
        from_=message.sender,
        to=message.to,
        type=message.type,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expires_at=time_at(message.expires_at),
        key=message.key,
        schema_version=message.schema_version,
        payload=data,
        signature="Unchecked" if entry.signature is not None else "Unsigned",
        problem=problem,
    )


def _why_not(message: Message, entry: Entry, largest: int) -> str | None:
    if entry.size > largest:
        return f"its payload is left out: it has more than {largest:,} bytes; ask for this message alone"
    if not _is_shallow(message.payload):
        return f"its payload is left out: it is nested more than {_DEEPEST} levels deep"
    return None


def _is_shallow(payload: dict[str, Any]) -> bool:
    level: list[Any] = [payload]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _parts(outer)]
        if not level:
            return True
    return False


def _parts(value: Any) -> Iterable[Any]:
    found = value.values() if isinstance(value, dict) else value
    return (part for part in found if isinstance(part, dict | list))
