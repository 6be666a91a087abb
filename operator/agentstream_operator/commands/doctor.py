"""`agentstream doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

import typer

from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()


@command(app, without=("watch",))
def doctor(session: Session) -> None:
    """Checks an installation: a line each, ok or what is wrong and what to do about it.

    In the folder of `agentstream dev`: the API, versions, the server's settings, clocks, streams and groups.
    In a cluster also the API server, the CRDs, the operator and your rights. A note is no mistake: a right
    that you do not have, or something that you may not look at.

    Exit codes: 0; 1 if something is wrong; 2 for invalid input; 3 if nothing can be reached.
    """
    from agentstream_operator.commands import checkup

    checkup.run(session)
