"""Starts replays and shows what becomes of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agentstream_operator.commands.client import url
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.output import NONE, Column, Printer, clock, count, span
from agentstream_operator.commands.progress import ProgressView, open_progress
from agentstream_operator.commands.session import Session
from agentstream_operator.commands.times import bound
from agentstream_operator.queue_api.documents import PreviewAnswer, ReplayAnswer, ReplaysAnswer
from agentstream_operator.resources.status import ReplayPhase, StreamReplayStatus
from agentstream_operator.resources.streamreplay import ReplayAction, ReplaySource

LOOK_EVERY = 1.0
"""Seconds between two looks at a replay that runs."""

_LETTERS = "bcdfghjkmnpqrstvwxz2456789"
_ENDED = frozenset({ReplayPhase.COMPLETE, ReplayPhase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which messages are meant, as the command line says it."""

    namespace: str
    group: str
    dead: bool
    since: str | None = None
    until: str | None = None
    types: Sequence[str] | None = None
    senders: Sequence[str] | None = None
    correlation: str | None = None
    ids: Sequence[str] | None = None
    reasons: Sequence[str] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and name of the group."""
        return self.namespace, self.group

    @property
    def select(self) -> dict[str, Any]:
        """The selection, without what was not given."""
        fields = {
            "types": self.types,
            "senders": self.senders,
            "correlation": self.correlation,
            "ids": self.ids,
            "reasons": self.reasons,
        }
        return {name: value for name, value in fields.items() if value}

    def body(self, more: Mapping[str, object]) -> dict[str, Any]:
        """The body of a request for a replay.

        Raises:
            CommandFailed: a time is none.
        """
        now = datetime.now().astimezone()
        ends = {"since": self.since, "until": self.until}
        given = {name: bound(f"--{name}", text, now) for name, text in ends.items() if text is not None}
        origin = {"source": "DeadLetters" if self.dead else "Stream", **given}
        return {
            "namespace": self.namespace,
            "groupRef": {"name": self.group},
            "from": origin,
            "select": self.select,
            **{name: value for name, value in more.items() if value is not None},
        }


def start(session: Session, asked: Asked, more: Mapping[str, object], *, dry_run: bool) -> None:
    """Starts a replay and shows it until it ends, or says what it would do.

    Raises:
        CommandFailed: nothing says which messages, or it is refused, or fails.
    """
    if not (asked.dead or asked.since or asked.until or asked.ids):
        raise CommandFailed(
            "say which messages: --dead, --since TIME (with --until TIME), or --id ID", code=BAD_INPUT
        )
    if asked.reasons and not asked.dead:
        raise CommandFailed(
            "--reason is one of dead letters: add --dead; --because TEXT says why you replay", code=BAD_INPUT
        )
    body = asked.body(more)
    if dry_run:
        show_preview(session.printer, preview(session, body))
        return
    follow(session, create(session, body))


def preview(session: Session, body: Mapping[str, object]) -> PreviewAnswer:
    """Asks what a replay would do."""
    return session.api.post("/queue/replay", {**body, "dryRun": True}, PreviewAnswer)


def create(session: Session, body: Mapping[str, Any]) -> ReplayAnswer:
    """Starts a replay, under a name by which it is found where the answer gets lost."""
    stem = str(body["groupRef"]["name"])[:57].rstrip("-")
    name = f"{stem}-{''.join(secrets.choice(_LETTERS) for _ in range(5))}"
    try:
        return session.api.post("/queue/replay", body, ReplayAnswer, headers={"Idempotency-Key": name})
    except CommandFailed as failure:
        if failure.code != UNREACHABLE:
            raise
        look = f"whether it began: {_program()} replays show {name} -n {body['namespace']}"
        raise CommandFailed(*failure.lines, look, code=UNREACHABLE) from failure


def show_preview(printer: Printer, found: PreviewAnswer) -> None:
    """Prints what a replay would do."""
    if printer.structured:
        printer.document(found)
        return
    of = "" if found.total is None else f" of {count(found.total)}"
    kind = "dead letters" if found.source is ReplaySource.DEAD_LETTERS else "messages"
    range_ = f" ({clock(found.first)} … {clock(found.last)})" if found.matched else ""
    least = "at least " if found.more else ""
    stay = ", ".join(f"{count(n)} {_words(reason)}" for reason, n in found.skipped.items() if n)
    printer.line(
        f"{least}{count(found.matched)}{of} {kind} of {found.namespace}/{found.group} match{range_}; "
        + (f"{stay} and stay; " if stay else "")
        + f"{count(found.would_move)} to move, about {span(found.seconds)}."
    )
    for warning in found.warnings:
        printer.line(f"warning: {warning}")
    if found.more:
        printer.line(f"Looked at {count(found.scanned)}, up to {found.to}: there are more.")
    printer.line(f"Only {found.group} gets them again. Nothing was changed; leave --dry-run out to start.")


def _words(reason: str) -> str:
    """`notAddressed` as words."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in reason)


def follow(session: Session, replay: ReplayAnswer) -> None:
    """Shows a replay until it has ended; Ctrl-C ends only this.

    Raises:
        CommandFailed: it failed, or messages of it became dead letters again.
    """
    path = url("queue", "replays", replay.namespace, replay.name)
    printer = session.printer
    try:
        with open_progress(printer, describe) as progress:
            last = _until_ended(session, path, replay, progress)
    except KeyboardInterrupt:
        for line in _how_to(replay):
            printer.line(line)
        return
    if printer.structured:
        printer.document(last)
    if last.phase is ReplayPhase.FAILED:
        raise CommandFailed(f"{_named(last)} failed: {last.message}", code=NOT_SO)
    if last.status is not None and last.status.dead:
        raise CommandFailed(
            f"{count(last.status.dead)} of them are dead letters again: {_program()} dlq "
            f"{last.spec.group_ref.name} -n {last.namespace}",
            code=NOT_SO,
        )


def _until_ended(session: Session, path: str, replay: ReplayAnswer, progress: ProgressView) -> ReplayAnswer:
    while True:
        progress.show(replay)
        if replay.phase in _ENDED:
            return replay
        time.sleep(LOOK_EVERY)
        replay = session.api.get(path, ReplayAnswer)


def _how_to(replay: ReplayAnswer) -> list[str]:
    name = f"{replay.name} -n {replay.namespace}"
    return [
        f"{_named(replay)} goes on without this command:",
        f"  {_program()} replays show {name} --watch",
        f"  {_program()} replays suspend {name}    (resume lets it go on)",
        f"  {_program()} replays delete {name}     (ends it; what was moved stays moved)",
    ]


def describe(replay: ReplayAnswer) -> str:
    """Says in a line how far a replay is."""
    status = replay.status or StreamReplayStatus()
    dropped = replay.spec.action is ReplayAction.DROP
    verb = "removed" if dropped else "moved"
    parts = [f"{count(status.moved or 0)}/{count(status.matched or 0)} {verb}"]
    if not dropped:
        parts.append(f"{count(status.handled or 0)} handled")
    if status.dead:
        parts.append(f"{count(status.dead)} dead again")
    if replay.phase is ReplayPhase.RUNNING and status.moved and status.started_at is not None:
        elapsed = (datetime.now(UTC) - status.started_at).total_seconds()
        parts.append(f"{status.moved / max(elapsed, 1):,.0f}/s")
    parts += [f"{count(n)} {_words(reason)}" for reason, n in (status.skipped or {}).items() if n]
    text = f"{_named(replay)} {replay.phase}: {' · '.join(parts)}"
    return f"{text} ({replay.message})" if replay.phase is ReplayPhase.PENDING and replay.message else text


def _named(replay: ReplayAnswer) -> str:
    return f"replay {replay.namespace}/{replay.name}"


def _program() -> str:
    from agentstream_operator.commands.program import program

    return program()


def show_all(session: Session) -> None:
    """Lists the replays of the namespace that is meant."""
    query = {"namespace": session.namespace}

    def look() -> ReplaysAnswer:
        return session.api.get("/queue/replays", ReplaysAnswer, query)

    def show(printer: Printer, found: ReplaysAnswer) -> None:
        printer.show(found, found.replays, REPLAYS, "no replays")

    session.shown(look, show)


def show_one(session: Session, name: str) -> None:
    """Shows a replay; with `--watch`, until it has ended."""
    found = session.api.get(_path(session, name), ReplayAnswer)
    if session.watch:
        follow(session, found)
        return
    if session.printer.structured:
        session.printer.document(found)
        return
    session.printer.table([found], REPLAYS)
    session.printer.line(describe(found))
    if found.message:
        session.printer.line(found.message)


def change(session: Session, name: str, fields: Mapping[str, object], said: str, why: str | None) -> None:
    """Changes a replay; `said` is printed after its name, with the program and its name filled in."""
    found = session.api.patch(_path(session, name), fields, ReplayAnswer, {"reason": why})
    name = f"{found.name} -n {found.namespace}"
    session.printer.line(f"{_named(found)} {said.format(_program(), name)}")


def delete(session: Session, name: str, why: str | None) -> None:
    """Deletes a replay."""
    path = _path(session, name)
    session.api.delete(path, {"reason": why})
    session.printer.line(f"replay {'/'.join(path.split('/')[-2:])} is deleted")


def _path(session: Session, name: str) -> str:
    """The path of a replay: `NAME` in the namespace that is meant, or `NAMESPACE/NAME`."""
    namespace, slash, rest = name.partition("/")
    if slash:
        return url("queue", "replays", namespace, rest)
    if session.namespace is not None:
        return url("queue", "replays", session.namespace, name)
    found = session.api.get("/queue/replays", ReplaysAnswer)
    named = [each.namespace for each in found.replays if each.name == name]
    if len(named) == 1:
        return url("queue", "replays", named[0], name)
    if not named:
        raise CommandFailed(f"there is no replay {name}: `{_program()} replays -A` lists all", code=NOT_SO)
    raise CommandFailed(f"{name} is in several namespaces: say which with -n", code=BAD_INPUT)


def _number(replay: ReplayAnswer, field: str) -> str:
    number = getattr(replay.status, field, None)
    return NONE if number is None else count(number)


def _age(replay: ReplayAnswer) -> str:
    return span(None if replay.created is None else (datetime.now(UTC) - replay.created).total_seconds())


REPLAYS: tuple[Column[ReplayAnswer], ...] = (
    Column("NAMESPACE", lambda r: r.namespace),
    Column("NAME", lambda r: r.name),
    Column("GROUP", lambda r: r.spec.group_ref.name),
    Column("SOURCE", lambda r: r.spec.from_.source.value),
    Column("MATCHED", lambda r: _number(r, "matched"), right=True),
    Column("MOVED", lambda r: _number(r, "moved"), right=True),
    Column("HANDLED", lambda r: _number(r, "handled"), right=True),
    Column("DEAD", lambda r: _number(r, "dead"), right=True),
    Column("PHASE", lambda r: r.phase.value, alarm=lambda r: r.phase is ReplayPhase.FAILED),
    Column("AGE", _age, right=True),
    Column("BY", lambda r: r.requested_by or NONE, wide=True),
    Column("BECAUSE", lambda r: r.spec.reason or NONE, wide=True),
)
