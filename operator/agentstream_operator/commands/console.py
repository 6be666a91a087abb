"""`agentstream console`: opens the pages of the API in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()


@command(app, without=("output", "watch"))
def console(
    session: Session,
    no_open: Annotated[bool, typer.Option("--no-open", help="Only print the link.")] = False,  # noqa: FBT002
) -> None:
    """Opens the console in a browser: queues, messages, dead letters and replays.

    The link logs one browser in, once, within a minute. For a cluster, the port is forwarded until Ctrl-C.

    Exit codes: 0; 2 for invalid input; 3 if the API does not answer.
    """
    from agentstream_operator.commands import browsing

    browsing.run(session, opens=not no_open)
