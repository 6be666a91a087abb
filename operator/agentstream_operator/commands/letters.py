"""Shows, writes down and removes dead letters."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import typer

from agentstream_operator.commands.client import url
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, CommandFailed
from agentstream_operator.commands.output import NONE, UNKNOWN, Column, Printer, clock, count
from agentstream_operator.commands.replaying import Asked, create, follow, preview
from agentstream_operator.commands.session import Session
from agentstream_operator.queue_api.documents import (
    LetterGroupItem,
    LetterGroupsAnswer,
    LetterItem,
    LettersAnswer,
)

LOOKED_AT, LISTED = 100_000, 50
_PAGE = 200
_SHORT = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What to do with the dead letters."""

    list_: bool
    show: str | None
    export: str | None
    drop: bool
    because: str | None
    limit: int | None
    yes: bool


def run(session: Session, asked: Asked, wish: Wish) -> None:
    """Does one of these; without any, shows the letters by what they died of.

    Raises:
        CommandFailed: several were asked for, or it cannot be done.
    """
    wanted = [wish.list_, wish.show is not None, wish.export is not None, wish.drop]
    if sum(wanted) > 1:
        raise CommandFailed("--list, --show, --export and --drop exclude each other", code=BAD_INPUT)
    if session.watch and any(wanted):
        raise CommandFailed("--watch is for the groups of dead letters: leave it out", code=BAD_INPUT)
    if asked.select and not (wish.drop or wish.list_ or wish.export):
        raise CommandFailed(
            "--reason, --type and the like select for --list, --export and --drop", code=BAD_INPUT
        )
    if (asked.since or asked.until) and not wish.drop:
        raise CommandFailed("--since and --until select for --drop", code=BAD_INPUT)
    if wish.drop:
        _drop(session, asked, wish)
    elif wish.show is not None:
        _show(session, asked, wish.show, wish.limit or LOOKED_AT)
    elif wish.export is not None:
        _export(session, asked, wish.export, wish.limit or LOOKED_AT)
    elif wish.list_:
        _list(session, asked, wish.limit or LISTED)
    else:
        session.shown(lambda: grouped(session, asked, wish.limit or LOOKED_AT), show_groups)


def grouped(session: Session, asked: Asked, most: int) -> LetterGroupsAnswer:
    """Gets the letters by what they died of, from as many pages as it takes."""
    path = url("queue", "deadletters", asked.namespace, asked.group, "groups")
    whole: LetterGroupsAnswer | None = None
    cursor: str | None = None
    while True:
        page = session.api.get(path, LetterGroupsAnswer, {"cursor": cursor})
        whole = page if whole is None else merged(whole, page)
        cursor = page.cursor
        if not page.more or cursor is None or whole.scanned >= most:
            return whole


def merged(one: LetterGroupsAnswer, other: LetterGroupsAnswer) -> LetterGroupsAnswer:
    """Joins what was found on two pages, of which `other` has the older letters."""
    found: dict[tuple[str, str], LetterGroupItem] = {(each.reason, each.error): each for each in one.groups}
    for each in other.groups:
        known = found.get((each.reason, each.error))
        if known is None:
            found[each.reason, each.error] = each
            continue
        first = min((at for at in (known.first, each.first) if at is not None), default=None)
        last = max((at for at in (known.last, each.last) if at is not None), default=None)
        found[each.reason, each.error] = known.model_copy(
            update={"count": known.count + each.count, "first": first, "last": last}
        )
    return one.model_copy(
        update={
            "groups": tuple(sorted(found.values(), key=lambda each: -each.count)),
            "scanned": one.scanned + other.scanned,
            "to": other.to,
            "more": other.more,
            "cursor": other.cursor,
        }
    )


def show_groups(printer: Printer, answer: LetterGroupsAnswer) -> None:
    """Prints the groups of letters, and what was not looked at."""
    name = f"{answer.namespace}/{answer.group}"
    printer.show(answer, answer.groups, GROUPS, f"no dead letters of {name}")
    if not printer.structured:
        _say_the_rest(printer, answer.scanned, answer.total, more=answer.more)


def _say_the_rest(printer: Printer, scanned: int, total: int | None, *, more: bool) -> None:
    if more:
        printer.line(f"Looked at the newest {count(scanned)} of {count(total)}: --limit N looks at more.")


def letters_of(session: Session, group: tuple[str, str], most: int) -> Iterator[LettersAnswer]:
    """Yields pages of letters, the newest first, until so many were looked at.

    `group` is a namespace and a name.
    """
    path = url("queue", "deadletters", *group)
    cursor: str | None = None
    scanned = 0
    while True:
        page = session.api.get(path, LettersAnswer, {"limit": min(_PAGE, most - scanned), "cursor": cursor})
        yield page
        cursor, scanned = page.cursor, scanned + page.scanned
        if not page.more or cursor is None or scanned >= most:
            return


def _selects(asked: Asked, letter: LetterItem) -> bool:
    """Whether a letter is one of those that are asked for."""
    message = letter.message
    return (
        (not asked.reasons or letter.reason in asked.reasons)
        and (not asked.types or message.type in asked.types)
        and (not asked.senders or message.from_ in asked.senders)
        and (not asked.correlation or message.correlation_id == asked.correlation)
        and (not asked.ids or bool({letter.letter, letter.origin, message.id} & set(asked.ids)))
    )


def _list(session: Session, asked: Asked, most: int) -> None:
    printer = session.printer
    found: list[LetterItem] = []
    scanned, total, more = 0, None, False
    for page in letters_of(session, asked.place, LOOKED_AT):
        found += [letter for letter in page.letters if _selects(asked, letter)]
        scanned, total, more = scanned + page.scanned, page.total, page.more
        if len(found) >= most:
            more = more or len(found) > most
            break
    found = found[:most]
    if printer.structured:
        printer.document(found)
        return
    if not found:
        printer.line(f"no such dead letters of {asked.namespace}/{asked.group}")
    else:
        printer.table(found, LETTERS)
    _say_the_rest(printer, scanned, total, more=more)


def _show(session: Session, asked: Asked, wanted: str, most: int) -> None:
    found = [
        letter
        for page in letters_of(session, asked.place, most)
        for letter in page.letters
        if wanted in {letter.letter, letter.origin} or (letter.message.id or "").startswith(wanted.lower())
    ]
    match found:
        case [letter]:
            pass
        case []:
            where = f"{asked.namespace}/{asked.group}"
            raise CommandFailed(f"no dead letter of {where} is {wanted}: --list shows them", code=NOT_SO)
        case _:
            ids = ", ".join(each.letter for each in found[:5])
            raise CommandFailed(f"{wanted} is {len(found)} dead letters ({ids} …): say which", code=BAD_INPUT)
    printer = session.printer
    if printer.structured:
        printer.document(letter)
        return
    message = letter.message
    lines = {
        "letter": letter.letter,
        "message": message.id or UNKNOWN,
        "entry": letter.origin or UNKNOWN,
        "died": clock(letter.at),
        "reason": letter.reason or UNKNOWN,
        "error": letter.error or NONE,
        "attempts": count(letter.attempts),
        "type": message.type or UNKNOWN,
        "from": message.from_ or UNKNOWN,
        "to": message.to or UNKNOWN,
        "correlation": message.correlation_id or NONE,
        "problem": message.problem,
    }
    for name, text in lines.items():
        if text is not None:
            printer.line(f"{name + ':':13}{text}")
    if message.payload is not None:
        printer.line("payload:")
        for line in json.dumps(message.payload, indent=2).splitlines():
            printer.line(f"  {line}")


def _export(session: Session, asked: Asked, place: str, most: int) -> None:
    if place == "-":
        written, left_out, more = _write(session, asked, sys.stdout, most)
        said = "standard output"
    else:
        target = Path(place)
        if target.exists():
            raise CommandFailed(f"--export: {target} exists: name another file, or remove it", code=BAD_INPUT)
        try:
            # only for its owner, since payloads may be secret; under its name only when it is whole
            handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    written, left_out, more = _write(session, asked, file, most)
                Path(draft).rename(target)
            finally:
                Path(draft).unlink(missing_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"--export: cannot write {target}: {error.strerror or error}", code=BAD_INPUT
            ) from error
        said = str(target)
    typer.echo(f"{count(written)} dead letters written to {said}", err=True)
    if left_out:
        typer.echo(f"warning: {count(left_out)} of them without their payload: see `problem`", err=True)
    if more:
        typer.echo(f"warning: only the newest {count(most)} were looked at: --limit N", err=True)


def _write(session: Session, asked: Asked, file: TextIO, most: int) -> tuple[int, int, bool]:
    """Writes letters as lines. Returns how many, how many have no payload, and whether there are more."""
    written, left_out, more = 0, 0, False
    for page in letters_of(session, asked.place, most):
        more = page.more
        for letter in page.letters:
            if _selects(asked, letter):
                written += 1
                left_out += letter.message.payload is None
                file.write(json.dumps(letter.model_dump(mode="json", by_alias=True)) + "\n")
    file.flush()
    return written, left_out, more


def _drop(session: Session, asked: Asked, wish: Wish) -> None:
    """Removes letters: those that are counted first, and no others."""
    if not asked.select:
        raise CommandFailed(
            "--drop needs a selection: --reason, --id, --type, --sender or --correlation", code=BAD_INPUT
        )
    body = asked.body({"action": "Drop", "reason": wish.because, "limit": wish.limit})
    found = preview(session, body)
    name = f"{asked.namespace}/{asked.group}"
    if not found.matched and not found.more:
        raise CommandFailed(f"no dead letter of {name} matches: --list shows them", code=NOT_SO)
    least = "at least " if found.more else ""
    question = f"Remove {least}{count(found.would_move)} of {count(found.total)} dead letters of {name}"
    if not wish.yes:
        if not sys.stdin.isatty():
            raise CommandFailed(f"{question}? Nothing was removed: add --yes", code=BAD_INPUT)
        if not typer.confirm(f"{question} for good?", err=True):
            raise CommandFailed("nothing was removed", code=NOT_SO)
    # one that dies meanwhile was not counted
    if found.last is not None and not found.more and asked.until is None:
        body["from"]["until"] = found.last.isoformat().replace("+00:00", "Z")
    follow(session, create(session, body))


GROUPS: tuple[Column[LetterGroupItem], ...] = (
    Column("COUNT", lambda g: count(g.count), right=True),
    Column("REASON", lambda g: g.reason),
    Column("ERROR", lambda g: g.error or NONE, elastic=True),
    Column("FIRST", lambda g: clock(g.first)),
    Column("LAST", lambda g: clock(g.last)),
    Column("SAMPLE", lambda g: (g.sample or g.letter)[: _SHORT if g.sample else None]),
)

LETTERS: tuple[Column[LetterItem], ...] = (
    Column("LETTER", lambda x: x.letter),
    Column("DIED", lambda x: clock(x.at)),
    Column("ATTEMPTS", lambda x: count(x.attempts), right=True),
    Column("REASON", lambda x: x.reason or UNKNOWN),
    Column("TYPE", lambda x: x.message.type or UNKNOWN),
    Column("FROM", lambda x: x.message.from_ or UNKNOWN),
    Column("MESSAGE", lambda x: (x.message.id or UNKNOWN)[:_SHORT]),
    Column("ERROR", lambda x: x.error or NONE, elastic=True),
    Column("ENTRY", lambda x: x.origin or UNKNOWN, wide=True),
)
