"""Looks at everything that `agentstream doctor` checks, and prints what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import typer
from pydantic import BaseModel

from agentstream.protocol import library
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.output import Column
from agentstream_operator.commands.session import Session
from agentstream_operator.commands.target import cluster, in_cluster
from agentstream_operator.plan import checkup
from agentstream_operator.plan.checkup import Finding, Verdict
from agentstream_operator.plan.observed import ServerInfo
from agentstream_operator.queue_api.documents import Answer, LagAnswer
from agentstream_operator.queue_api.troubles import Severity, Trouble, of_resources, of_server


class Checked(Answer):
    """A check, as `-o json` has it."""

    check: str
    verdict: Verdict
    text: str
    remedy: str


class CheckupAnswer(Answer):
    """Everything that was looked at, and how much of it is wrong."""

    wrong: int
    checks: tuple[Checked, ...]


class _Description(BaseModel):
    info: dict[str, Any]


def run(session: Session) -> None:
    """Checks what there is, and prints it; ends the command with exit code 1 or 3 if something is wrong."""
    unreachable = False
    findings: list[Finding] = []
    try:
        findings += _everything(session)
    except CommandFailed as failed:
        if failed.code == BAD_INPUT:
            raise
        unreachable = True
        findings += (Finding("reach", Verdict.WRONG, line) for line in failed.lines)
    wrong = sum(finding.verdict is Verdict.WRONG for finding in findings)
    checks = tuple(Checked(**finding._asdict()) for finding in findings)
    session.printer.show(CheckupAnswer(wrong=wrong, checks=checks), findings, _COLUMNS)
    if wrong:
        raise typer.Exit(UNREACHABLE if unreachable else NOT_SO)


_COLUMNS: tuple[Column[Finding], ...] = (
    Column("VERDICT", lambda f: f.verdict, alarm=lambda f: f.verdict is Verdict.WRONG),
    Column("CHECK", lambda f: f.check),
    Column("FOUND", lambda f: f"{f.text}: {f.remedy}" if f.remedy else f.text),
)


def _everything(session: Session) -> list[Finding]:
    """Everything that can be reached.

    Raises:
        CommandFailed: that is nothing.
    """
    if not in_cluster(session.options):
        return list(_api(session, shared=session.options.api is not None))
    findings: list[Finding] = cluster().surveyed(session.options, version("agentstream-operator"))
    try:
        findings += _api(session, shared=True)
    except CommandFailed as failed:
        # the API server answers: something can be reached
        findings += (Finding("queue server", Verdict.WRONG, line) for line in failed.lines)
    return findings


def _api(session: Session, *, shared: bool) -> Iterator[Finding]:
    described = session.api.get("/openapi.json", _Description)
    ours = version("agentstream-operator")
    found = checkup.check_version("api", str(described.info.get("version", "")), ours)
    yield found._replace(text=f"{session.target.place}: {found.text}")
    try:
        lag = session.api.get("/queue/lag", LagAnswer, {"namespace": session.namespace})
    except CommandFailed as failed:
        if failed.code != NOT_SO:
            raise
        # who may not read numbers learns nothing of the server
        yield from (Finding("server", Verdict.NOTE, line) for line in failed.lines)
        return
    if not lag.server.reachable:
        yield from (_finding(each)._replace(check="server") for each in of_server(lag))
        return
    if lag.server.program is None or lag.server.clock is None:
        yield Finding("server", Verdict.NOTE, "this API tells nothing of its settings", "update the API")
    else:
        fields = lag.server.model_dump(exclude={"reachable"}, by_alias=False)
        info = ServerInfo(**fields | {"clock": int(lag.server.clock.timestamp() * 1000)})
        yield from checkup.check_server(info, datetime.now(UTC), library.revision(), shared=shared)
    yield from _resources(lag)


def _resources(lag: LagAnswer) -> Iterator[Finding]:
    found = list(of_resources(lag))
    yield from map(_finding, found)
    if not found:
        text = f"in effect: AgentStreams {len(lag.streams):,}, ConsumerGroups {len(lag.groups):,}"
        yield Finding("resources", Verdict.OK, text)


def _finding(trouble: Trouble) -> Finding:
    verdict = Verdict.WRONG if trouble.severity is Severity.BROKEN else Verdict.NOTE
    return Finding(trouble.about, verdict, f"{trouble.what}: {trouble.why.rstrip('.')}", trouble.action)
