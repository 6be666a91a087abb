"""`agentstream replay` and `agentstream replays`: to give messages to a group once more."""

from __future__ import annotations

from typing import Annotated

import typer

from agentstream_operator.commands.completion import groups
from agentstream_operator.commands.completion import replays as replay_names
from agentstream_operator.commands.declare import callback, command
from agentstream_operator.commands.session import Session

app = typer.Typer()
_replays = typer.Typer(no_args_is_help=False)
app.add_typer(_replays, name="replays")

Group = Annotated[str, typer.Argument(metavar="GROUP", help="The ConsumerGroup.", autocompletion=groups)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The StreamReplay.", autocompletion=replay_names)]

_A_TIME = "09:00 (the last one), 10m (ago), 2026-01-31T12:00:00Z, or an entry id"
Since = Annotated[str | None, typer.Option(metavar="TIME", help=f"First message: {_A_TIME}.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Last message, as --since.")]
Types = Annotated[
    list[str] | None, typer.Option("--type", metavar="TYPE", help="Only this type; repeatable.")
]
Senders = Annotated[
    list[str] | None, typer.Option("--sender", metavar="AGENT", help="Only from this agent; repeatable.")
]
Correlation = Annotated[str | None, typer.Option(metavar="ID", help="Only with this correlation id.")]
Ids = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="ID", help="Only this one: an entry id, or the message's UUID; repeatable."),
]
Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="REASON", help="Only dead letters with this reason; repeatable."),
]
Because = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for those who read events later.")]
Rate = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="At most so many per second. Default: 100.")
]


@command(app, without=("watch",))
def replay(
    session: Session,
    group: Group,
    dead: Annotated[bool, typer.Option("--dead", help="The group's dead letters.")] = False,  # noqa: FBT002
    since: Since = None,
    until: Until = None,
    type_: Types = None,
    sender: Senders = None,
    correlation: Correlation = None,
    id_: Ids = None,
    reason: Reasons = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many, the oldest first.")
    ] = None,
    rate: Rate = None,
    window: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Wait while the group has more retries than this. Default: 1000."
        ),
    ] = None,
    expired: Annotated[  # noqa: FBT002
        bool, typer.Option("--expired", help="Those that have expired, too.")
    ] = False,
    because: Because = None,
    dry_run: Annotated[  # noqa: FBT002
        bool, typer.Option("--dry-run", help="Say what it would do; change nothing.")
    ] = False,
) -> None:
    """Gives messages to a group once more: its dead letters, or those of a range of its stream.

    No other group gets them. It goes on without this command: Ctrl-C ends only the display, and says how to
    look at it, hold it or end it.

    Exit codes: 0; 1 if it failed, or something of it became a dead letter again; 2 for invalid input; 3 if
    the API or the server does not answer.
    """
    from agentstream_operator.commands import replaying

    namespace, name = session.group(group)
    asked = replaying.Asked(
        namespace=namespace,
        group=name,
        dead=dead,
        since=since,
        until=until,
        types=type_,
        senders=sender,
        correlation=correlation,
        ids=id_,
        reasons=reason,
    )
    extra = {"limit": limit, "rate": rate, "window": window, "reason": because}
    replaying.start(session, asked, {**extra, "expired": "Deliver" if expired else None}, dry_run=dry_run)


@callback(_replays)
def list_replays(session: Session, ctx: typer.Context) -> None:
    """Lists the replays; shows, holds or ends one."""
    from agentstream_operator.commands import replaying

    if ctx.invoked_subcommand is None:
        replaying.show_all(session)


@command(_replays)
def show(session: Session, name: Name) -> None:
    """Shows a replay, and with --watch how it goes on."""
    from agentstream_operator.commands import replaying

    replaying.show_one(session, name)


@command(_replays, without=("output", "watch"))
def suspend(session: Session, name: Name, because: Because = None) -> None:
    """Holds a replay; what was given out already is handled."""
    from agentstream_operator.commands import replaying

    said = "is held: `{} replays resume {}` lets it go on"
    replaying.change(session, name, {"suspend": True}, said, because)


@command(_replays, without=("output", "watch"))
def resume(session: Session, name: Name, rate: Rate = None, because: Because = None) -> None:
    """Lets a replay go on where it was held; --rate sets another pace."""
    from agentstream_operator.commands import replaying

    change = {"suspend": False} | ({} if rate is None else {"rate": rate})
    replaying.change(session, name, change, "goes on: `{} replays show {} --watch`", because)


@command(_replays, without=("output", "watch"))
def delete(session: Session, name: Name, because: Because = None) -> None:
    """Ends a replay and removes it; what it moved stays moved."""
    from agentstream_operator.commands import replaying

    replaying.delete(session, name, because)
