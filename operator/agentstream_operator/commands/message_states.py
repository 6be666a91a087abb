"""Finds a message by its id, and shows it with what became of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from agentstream_operator.commands.client import url
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, CommandFailed
from agentstream_operator.commands.letters import letters_of
from agentstream_operator.commands.output import NONE, UNKNOWN, Column, Printer, clock, count, span
from agentstream_operator.commands.progress import searching
from agentstream_operator.commands.session import Session
from agentstream_operator.plan.fate import MessageState
from agentstream_operator.queue_api.documents import (
    LagAnswer,
    MessageAnswer,
    MessagesAnswer,
    StateInGroup,
)

_ENTRY = re.compile(r"\d{1,20}-\d{1,20}")
_UUID = re.compile(r"[0-9a-f-]{4,36}")
_FEW = 5

Place = tuple[str, str, str]
"""A namespace, the name of a stream in it, and an entry id."""


def run(session: Session, message: str, stream: str | None, limit: int) -> None:
    """Shows a message, once or again and again.

    Raises:
        CommandFailed: it is not there, or several are.
    """
    wanted = message.lower()
    if not (_ENTRY.fullmatch(wanted) or _UUID.fullmatch(wanted)):
        raise CommandFailed(
            f"{message!r} is no message: give an entry id, such as 1796040762366-0, or at least four "
            "characters of a UUID",
            code=BAD_INPUT,
        )
    place = _find(session, wanted, stream, limit)
    session.shown(lambda: get(session, place), show)


def get(session: Session, place: Place) -> MessageAnswer:
    """Gets a message with what became of it."""
    return session.api.get(url("queue", "messages", *place), MessageAnswer)


def show(printer: Printer, found: MessageAnswer) -> None:
    """Prints a message."""
    if printer.structured:
        printer.document(found)
        return
    now = datetime.now(UTC)
    ago = (
        f" ({span((now - found.at).total_seconds())} ago)" if found.at is not None and found.at <= now else ""
    )
    lines = {
        "message": found.id or UNKNOWN,
        "stream": f"{found.namespace}/{found.stream}",
        "entry": found.entry,
        "added": f"{clock(found.at)}{ago}",
        "size": f"{count(found.size)} bytes",
        "type": found.type or UNKNOWN,
        "from": found.from_ or UNKNOWN,
        "to": found.to or UNKNOWN,
        "correlation": found.correlation_id or NONE,
        "reply to": found.reply_to,
        "expires": clock(found.expires_at) if found.expires_at is not None else None,
        "key": found.key,
        "signature": found.signature,
        "problem": found.problem,
    }
    for name, text in lines.items():
        if text is not None:
            printer.line(f"{name + ':':13}{text}")
    if found.groups:
        printer.line()
        printer.table(found.groups, STATES)
    if found.payload is not None:
        printer.line()
        printer.line("payload:")
        for line in json.dumps(found.payload, indent=2).splitlines():
            printer.line(f"  {line}")


def detail(state: StateInGroup) -> str:
    """Says the rest of a state in a few words."""
    said: list[str] = []
    if state.consumer is not None:
        said.append(f"by {state.consumer}, lease renewed {span(state.held_seconds)} ago")
    if state.state is MessageState.DELAYED:
        said.append(f"again at {clock(state.due)}")
    if state.replay is not None:
        said.append(f"by replay {state.replay}")
    if state.reason is not None:
        said.append(f"{state.reason}: {state.error}" if state.error else state.reason)
    elif state.error is not None:
        said.append(state.error)
    return "; ".join(said) or NONE


STATES: tuple[Column[StateInGroup], ...] = (
    Column("GROUP", lambda s: s.group),
    Column(
        "STATE",
        lambda s: s.state,
        alarm=lambda s: s.state in {MessageState.DEAD, MessageState.MISSING},
    ),
    Column("ATTEMPTS", lambda s: count(s.attempts) if s.attempts is not None else NONE, right=True),
    Column("LETTER", lambda s: s.letter or NONE, wide=True),
    Column("DETAIL", detail, elastic=True),
)


def _find(session: Session, wanted: str, stream: str | None, limit: int) -> Place:
    lag = session.api.get("/queue/lag", LagAnswer)
    streams = [
        (each.namespace, each.name) for each in lag.streams if session.namespace in {None, each.namespace}
    ]
    if stream is not None:
        streams = [session.stream(stream)]
    if _ENTRY.fullmatch(wanted):
        return _the_one(wanted, _by_entry(session, streams, wanted))
    found = [place for each in streams for place in _by_uuid(session, each, wanted, limit)]
    if not found:
        groups = [
            ((each.namespace, each.name), (each.namespace, each.stream))
            for each in lag.groups
            if (each.namespace, each.stream) in streams and each.dead
        ]
        letters = (_by_letter(session, group, of, wanted, limit) for group, of in groups)
        found = sorted({place for each in letters for place in each})
    if not found:
        where = ", ".join("/".join(each) for each in streams[:_FEW]) or "any stream"
        raise CommandFailed(
            f"no message {wanted} on {where}: the history may not reach back to it; --limit N looks at more"
        )
    return _the_one(wanted, found)


def _the_one(wanted: str, found: list[Place]) -> Place:
    if len(found) == 1:
        return found[0]
    named = ", ".join(f"{entry} on {namespace}/{name}" for namespace, name, entry in found[:_FEW])
    raise CommandFailed(f"{wanted} is several messages: say which ({named})", code=BAD_INPUT)


def _by_entry(session: Session, streams: list[tuple[str, str]], entry: str) -> list[Place]:
    """Looks for a message by its entry id.

    Raises:
        CommandFailed: no stream has it; the lines say why of each.
    """
    found: list[Place] = []
    lines: list[str] = []
    for namespace, name in streams:
        try:
            get(session, (namespace, name, entry))
        except CommandFailed as failure:
            if failure.code != NOT_SO:
                raise
            lines += failure.lines
        else:
            found.append((namespace, name, entry))
    if not found:
        raise CommandFailed(*(lines or ["there is no stream: `agentstream lag -A` lists all"]))
    return found


def _by_uuid(session: Session, stream: tuple[str, str], wanted: str, limit: int) -> Iterator[Place]:
    """Looks for a message by its UUID in a stream, the newest first."""
    cursor: str | None = None
    scanned = 0
    with searching("/".join(stream)) as tell:
        while True:
            query = {"id": wanted, "limit": _FEW, "cursor": cursor}
            page = session.api.get(url("queue", "messages", *stream), MessagesAnswer, query)
            yield from ((*stream, each.entry) for each in page.messages)
            cursor, scanned = page.cursor, scanned + page.scanned
            if not page.more or cursor is None or scanned >= limit:
                return
            tell(scanned)


def _by_letter(
    session: Session, group: tuple[str, str], stream: tuple[str, str], wanted: str, limit: int
) -> Iterator[Place]:
    """Looks for a message by its UUID among dead letters: they stay when the stream was trimmed."""
    for page in letters_of(session, group, limit):
        for each in page.letters:
            if each.origin is not None and (each.message.id or "").startswith(wanted):
                yield (*stream, each.origin)
