"""Finds the messages that belong together, and shows them one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from agentstream_operator.commands.client import url
from agentstream_operator.commands.failure import CommandFailed
from agentstream_operator.commands.output import NONE, UNKNOWN, Column, Printer, count, span
from agentstream_operator.commands.progress import searching
from agentstream_operator.commands.session import Session
from agentstream_operator.queue_api.documents import (
    Answer,
    ConversationAnswer,
    ConversationItem,
    LagAnswer,
    SearchedStream,
)

_SHORT = 8


class Conversation(Answer):
    """The messages of a conversation, the oldest first, and what was looked at."""

    messages: tuple[ConversationItem, ...]
    """The messages."""

    streams: tuple[SearchedStream, ...]
    """What was looked at, by stream."""

    more: bool
    """Whether there are more entries to look at."""


def find(session: Session, correlation: str, limit: int) -> Conversation:
    """Finds a conversation in the namespace that is meant, or in all of them.

    Raises:
        CommandFailed: there is none.
    """
    namespaces: Sequence[str | None] = [session.namespace]
    if session.namespace is None:
        lag = session.api.get("/queue/lag", LagAnswer)
        namespaces = sorted({stream.namespace for stream in lag.streams})
    found: list[ConversationItem] = []
    streams: list[SearchedStream] = []
    more = False
    for namespace in namespaces:
        path, cursor, scanned = url("queue", "conversations", namespace or "", correlation), None, 0
        with searching(namespace or "") as tell:
            while True:
                page = session.api.get(path, ConversationAnswer, {"cursor": cursor})
                found += page.messages
                streams += page.streams
                cursor = page.cursor
                scanned += sum(stream.scanned for stream in page.streams)
                if cursor is None or scanned >= limit:
                    break
                tell(scanned)
        more = more or cursor is not None
    if not found:
        looked = sum(stream.scanned for stream in streams)
        what = f"looked at {count(looked)} messages{', there are more: --limit N' if more else ''}"
        raise CommandFailed(f"no message belongs to {correlation}: {what}")
    ordered = sorted(found, key=lambda each: tuple(map(int, each.entry.split("-"))))
    return Conversation(messages=tuple(ordered), streams=tuple(streams), more=more)


def show(printer: Printer, found: Conversation) -> None:
    """Prints a conversation."""
    if printer.structured:
        printer.document(found)
        return
    first = found.messages[0].at
    columns: tuple[Column[ConversationItem], ...] = (
        Column("ADDED", lambda m: _clock(m.at)),
        Column("AFTER", lambda m: _after(first, m.at), right=True),
        Column("STREAM", lambda m: m.stream),
        Column("TYPE", lambda m: m.type or UNKNOWN),
        Column("FROM", lambda m: m.from_ or UNKNOWN),
        Column("TO", lambda m: m.to or UNKNOWN),
        Column("MESSAGE", lambda m: (m.id or UNKNOWN)[:_SHORT]),
        Column("ENTRY", lambda m: m.entry, wide=True),
        Column("PAYLOAD", _payload, elastic=True),
    )
    printer.table(found.messages, columns)
    for stream in found.streams:
        if stream.problem is not None:
            printer.line(f"warning: {stream.stream} could not be searched: {stream.problem}")
    if found.more:
        printer.line("There are more messages to look at: --limit N.")


def _clock(at: datetime | None) -> str:
    return UNKNOWN if at is None else f"{at.astimezone():%H:%M:%S.%f}"[:-3]


def _after(first: datetime | None, at: datetime | None) -> str:
    return NONE if first is None or at is None else f"+{span((at - first).total_seconds())}"


def _payload(message: ConversationItem) -> str:
    said = message.problem if message.payload is None else json.dumps(message.payload, ensure_ascii=False)
    return (said or NONE)[:200]
