"""The tables of `agentstream lag` and `agentstream top`."""

from __future__ import annotations

from collections.abc import Callable

from agentstream_operator.commands.failure import NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.output import NONE, UNKNOWN, Column, Printer, clock, count, rate, span
from agentstream_operator.commands.session import Session
from agentstream_operator.queue_api.documents import GroupNumbers, LagAnswer, StreamNumbers
from agentstream_operator.queue_api.figures import share
from agentstream_operator.queue_api.troubles import is_wrong, of_resources, of_server, state

_MEGABYTE = 2**20


def looker(session: Session, group: str | None) -> Callable[[], LagAnswer]:
    """Returns what gets the numbers of the groups that are meant.

    Raises:
        CommandFailed: there is no such group.
    """
    namespace, name = (session.namespace, None) if group is None else session.group(group)

    def look() -> LagAnswer:
        answer = session.api.get("/queue/lag", LagAnswer, {"namespace": namespace, "group": name})
        if name is not None and not answer.groups:
            raise CommandFailed(
                f"there is no group {namespace}/{name}: `agentstream lag -A` lists all", code=NOT_SO
            )
        return answer

    return look


def show(printer: Printer, answer: LagAnswer) -> None:
    """Prints the groups."""
    printer.show(answer, answer.groups, GROUPS, "no groups: `agentstream lag -A` shows all namespaces")
    if answer.groups and printer.output == "wide":
        printer.line(_summary(answer))
    if answer.groups and not printer.structured:
        for each in sorted(of_resources(answer), key=lambda trouble: trouble.severity):
            printer.line(f"{each.about}: {each.what}: {each.why.rstrip('.')}. {each.action}")
    if not answer.server.reachable and not printer.structured:
        (outage,) = of_server(answer)
        said = f"{outage.about} {outage.what}: {outage.why}"
        raise CommandFailed(f"{said}. {outage.action}", code=UNREACHABLE)


def show_top(printer: Printer, answer: LagAnswer) -> None:
    """Prints the server, the streams and the groups, the largest first; what is unknown comes before all."""
    printer.line(_server(answer))
    printer.line()
    printer.table(sorted(answer.streams, key=lambda s: _unknown_first(s.unsettled)), STREAMS)
    printer.line()
    printer.table(sorted(answer.groups, key=lambda g: _unknown_first(g.backlog)), GROUPS)


def _delivered(group: GroupNumbers) -> str:
    return UNKNOWN if group.delivered is None else share(group.delivered)


def _summary(answer: LagAnswer) -> str:
    found = answer.delivered
    if found is None:
        return "delivered: unknown"
    lost = f"{found.dead:,} dead, {found.lost:,} lost, {found.waiting:,} waiting"
    return f"delivered: {share(found)} of {found.added:,} messages; {lost}"


def _unknown_first(number: int | None) -> tuple[bool, int]:
    return number is not None, -(number or 0)


def _server(answer: LagAnswer) -> str:
    server = answer.server
    if not server.reachable:
        return f"{clock(answer.at)}  the server does not answer"
    used, most = (_megabytes(each) for each in (server.used_memory, server.max_memory))
    of = "" if server.max_memory is None else f" of {most}"
    return f"{clock(answer.at)}  server {server.role or UNKNOWN}, {used}{of}"


def _megabytes(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / _MEGABYTE:,.1f} MiB"


def _pods(group: GroupNumbers) -> str:
    wanted, running = group.consumers.wanted, group.consumers.running
    return NONE if wanted is None and running is None else f"{count(running)}/{count(wanted)}"


def _oldest(group: GroupNumbers) -> str:
    return span(group.oldest_seconds, NONE if group.known else UNKNOWN)


GROUPS: tuple[Column[GroupNumbers], ...] = (
    Column("NAMESPACE", lambda g: g.namespace),
    Column("GROUP", lambda g: g.name),
    Column("STREAM", lambda g: g.stream),
    Column("BACKLOG", lambda g: count(g.backlog, exact=g.exact is not False), right=True),
    Column("WAIT", lambda g: count(g.undelivered, exact=g.exact is not False), right=True),
    Column("RUN", lambda g: count(g.pending), right=True),
    Column("RETRY", lambda g: count(g.retrying), right=True),
    Column("LATER", lambda g: count(g.delayed), right=True),
    Column("DEAD", lambda g: count(g.dead), right=True, alarm=lambda g: bool(g.dead)),
    Column("OLDEST", _oldest, right=True),
    Column("IN/S", lambda g: rate(g.arrival_rate), right=True),
    Column("OUT/S", lambda g: rate(g.service_rate), right=True),
    Column("DRAIN", lambda g: span(g.drain_seconds), right=True),
    Column("PODS", _pods, right=True),
    Column("STATE", state, alarm=is_wrong),
    Column("DELIVERED", _delivered, right=True, wide=True),
    Column("NEXT", lambda g: NONE if g.next_due is None else clock(g.next_due), wide=True),
)

STREAMS: tuple[Column[StreamNumbers], ...] = (
    Column("NAMESPACE", lambda s: s.namespace),
    Column("STREAM", lambda s: s.name),
    Column("LENGTH", lambda s: count(s.length), right=True),
    Column("IN/S", lambda s: rate(s.rate), right=True),
    Column("UNSETTLED", lambda s: count(s.unsettled), right=True),
    Column("LIMIT", lambda s: NONE if s.limit is None else count(s.limit), right=True),
    Column("HISTORY", lambda s: span(s.history_seconds), right=True),
    Column("ADMISSION", lambda s: s.admission or UNKNOWN, alarm=lambda s: s.admission == "Closed"),
    Column("STATE", state, alarm=is_wrong),
)
