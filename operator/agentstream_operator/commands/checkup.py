"""Looks at everything that `agentstream doctor` checks, and prints what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version

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
from agentstream_operator.queue_api.documents import Answer, LagAnswer, ServerNumbers


class Checked(Answer):
    """A check, as `-o json` has it."""

    check: str
    """What was looked at."""

    verdict: Verdict
    """What came of it."""

    text: str
    """What was found."""

    remedy: str
    """What to do about it."""


class CheckupAnswer(Answer):
    """Everything that was looked at."""

    wrong: int
    """How many checks found something that is wrong."""

    checks: tuple[Checked, ...]
    """The checks."""


class _Info(BaseModel):
    version: str


class _Description(BaseModel):
    info: _Info


def run(session: Session) -> None:
    """Checks what there is, and prints it; ends the command with exit code 1 or 3 if something is wrong."""
    session.printer  # noqa: B018 - an output that makes no sense is said before anything is asked
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
    findings = list(_cluster(session))
    try:
        findings += _api(session, shared=True)
    except CommandFailed as failed:
        # the API server answers: something can be reached
        findings += (Finding("queue server", Verdict.WRONG, line) for line in failed.lines)
    return findings


def _cluster(session: Session) -> Iterator[Finding]:
    found, ours = cluster().surveyed(session.options), version("agentstream-operator")
    yield checkup.check_kubernetes(found.version)
    if found.clock is not None:
        yield checkup.check_clock("the API server", found.clock, datetime.now(UTC))
    for each in found.definitions:
        if isinstance(each, str):
            yield Finding("crd", Verdict.NOTE, each, "somebody with rights to CRDs can look")
        else:
            yield checkup.check_definition(each)
    if isinstance(found.operators, str):
        remedy = f"ask for list on deployments in {found.home} to see whether the operator runs"
        yield Finding("operator", Verdict.NOTE, found.operators, remedy)
    else:
        yield from checkup.check_operator(found.operators, found.home, ours)
    where = f"namespace {found.namespace}" if found.namespace else "all namespaces"
    for right in found.rights:
        yield checkup.check_right(right.what, right.need, where, allowed=right.allowed)
    if found.certificate:
        text = "the queue server does not see your certificate: there you may what the account for people may"
        yield Finding("rights", Verdict.NOTE, text, "queueServer.cliMay in the chart")


def _api(session: Session, *, shared: bool) -> Iterator[Finding]:
    described = session.api.get("/openapi.json", _Description)
    ours = version("agentstream-operator")
    found = checkup.check_version("api", described.info.version, ours)
    yield found._replace(text=f"{session.target.place}: {found.text}")
    lag = session.api.get("/queue/lag", LagAnswer, {"namespace": session.namespace})
    if not lag.server.reachable:
        yield checkup.no_server()
        return
    if (info := _info(lag.server)) is None:
        yield Finding("server", Verdict.NOTE, "this API tells nothing of its settings", "update the API")
    else:
        yield from checkup.check_server(info, datetime.now(UTC), library.revision(), shared=shared)
    yield from _resources(lag)


def _info(server: ServerNumbers) -> ServerInfo | None:
    """What the server tells of itself; None if the API is of a version that does not say it."""
    if server.program is None or server.clock is None:
        return None
    fields = server.model_dump(exclude={"reachable"}, by_alias=False)
    return ServerInfo(**fields | {"clock": int(server.clock.timestamp() * 1000)})


def _resources(lag: LagAnswer) -> Iterator[Finding]:
    found = [
        checkup.check_resource(
            f"AgentStream {s.namespace}/{s.name}", s.reason, ready=s.ready, full=s.admission == "Closed"
        )
        for s in lag.streams
    ]
    found += [
        checkup.check_resource(f"ConsumerGroup {g.namespace}/{g.name}", g.reason, ready=g.ready)
        for g in lag.groups
    ]
    wrong = [each for each in found if each is not None]
    yield from wrong
    if not wrong:
        text = f"in effect: AgentStreams {len(lag.streams):,}, ConsumerGroups {len(lag.groups):,}"
        yield Finding("resources", Verdict.OK, text)
