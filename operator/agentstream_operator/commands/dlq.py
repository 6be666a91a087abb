"""`agentstream dlq`: what died, of what, and what to do with it."""

from __future__ import annotations

from typing import Annotated

import typer

from agentstream_operator.commands.declare import command
from agentstream_operator.commands.replay import (
    Because,
    Correlation,
    Group,
    Ids,
    Reasons,
    Senders,
    Since,
    Types,
    Until,
)
from agentstream_operator.commands.session import Session

app = typer.Typer()


@command(app)
def dlq(
    session: Session,
    group: Group,
    list_: Annotated[bool, typer.Option("--list", help="One by one, the newest first.")] = False,  # noqa: FBT002
    show: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="One with its payload: by a letter's id, or the beginning of a UUID."
        ),
    ] = None,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write them as JSON, one a line; - is standard output.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove those that are selected.")] = False,  # noqa: FBT002
    reason: Reasons = None,
    type_: Types = None,
    sender: Senders = None,
    correlation: Correlation = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    because: Because = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Look at so many of the newest. Default: 100,000; --list: 50."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before --drop.")] = False,  # noqa: FBT002
) -> None:
    """Shows the dead letters of a group, those that died of the same together.

    --list, --show, --export and --drop say what to do instead. --drop needs a selection, says how many it
    is, and asks. `agentstream replay GROUP --dead` gives them to the group once more.

    Exit codes: 0; 1 if what was asked for is not there; 2 for invalid input; 3 if the API or the server does
    not answer.
    """
    from agentstream_operator.commands import letters
    from agentstream_operator.commands.replaying import Asked

    namespace, name = session.group(group)
    asked = Asked(
        namespace=namespace,
        group=name,
        dead=True,
        since=since,
        until=until,
        types=type_,
        senders=sender,
        correlation=correlation,
        ids=id_,
        reasons=reason,
    )
    letters.run(session, asked, letters.Wish(list_, show, export, drop, because, limit, yes))
