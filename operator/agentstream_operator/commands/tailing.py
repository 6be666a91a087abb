"""Shows messages of a stream as they come: asks for those after the last one, once a second."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import NamedTuple

from agentstream_operator.commands.client import Query, url
from agentstream_operator.commands.failure import BAD_INPUT, CommandFailed
from agentstream_operator.commands.output import UNKNOWN, Printer
from agentstream_operator.commands.session import Session
from agentstream_operator.queue_api.documents import MessageItem, MessagesAnswer

EVERY = 1.0
"""Seconds between two looks while nothing comes."""

_PAGE = 200
_SHORT = 8
_LONGEST = 1_000


class Wanted(NamedTuple):
    """Which messages are shown."""

    type: str | None = None
    sender: str | None = None
    correlation: str | None = None
    containing: str | None = None

    @property
    def query(self) -> Query:
        """The parameters that select them."""
        return {
            "type": self.type,
            "from": self.sender,
            "correlation": self.correlation,
            "q": self.containing,
        }


def run(session: Session, stream: str, wanted: Wanted, last: int, *, follow: bool) -> None:
    """Shows the last messages that match, then those that come.

    Raises:
        CommandFailed: there is no such stream, or the API does not answer.
    """
    if session.output == "yaml":
        raise CommandFailed("-o yaml: messages are shown as lines: -o json", code=BAD_INPUT)
    path = url("queue", "messages", *session.stream(stream))
    newest = session.api.get(path, MessagesAnswer, {"limit": 1})
    if last:
        found = session.api.get(path, MessagesAnswer, {**wanted.query, "limit": last})
        # those that came since are shown below
        _show(session.printer, [each for each in found.messages if _is_by(each, newest.from_)][::-1])
    at = newest.from_ or "0-0"
    while follow:
        page = session.api.get(
            path, MessagesAnswer, {**wanted.query, "order": "forward", "cursor": at, "limit": _PAGE}
        )
        _show(session.printer, page.messages)
        at = page.to or at
        if not page.more:
            time.sleep(EVERY)


def _is_by(message: MessageItem, newest: str | None) -> bool:
    return newest is not None and _place(message.entry) <= _place(newest)


def _place(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))


def _show(printer: Printer, messages: tuple[MessageItem, ...] | list[MessageItem]) -> None:
    for message in messages:
        if printer.structured:
            printer.raw(json.dumps(message.model_dump(mode="json", by_alias=True)) + "\n")
        else:
            printer.line(line(message))


def line(message: MessageItem) -> str:
    """Describes a message in a line: when it was added, of what type, from whom to whom, and its payload."""
    at = f"{message.at.astimezone():%H:%M:%S.%f}"[:-3] if isinstance(message.at, datetime) else UNKNOWN
    if message.id is None:
        return f"{at}  {message.entry}  {message.problem}"
    said = json.dumps(message.payload, ensure_ascii=False) if message.payload is not None else message.problem
    text = f"{said}" if len(f"{said}") <= _LONGEST else f"{said}"[:_LONGEST] + "…"
    return f"{at}  {message.type}  {message.from_} → {message.to}  {message.id[:_SHORT]}  {text}"
