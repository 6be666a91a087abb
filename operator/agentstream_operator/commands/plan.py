"""`agentstream plan`: what applying manifests would change, and what that means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Manifest files (.yaml, .yml, .json), or directories with such files.",
        show_default=False,
    ),
]


@command(app, without=("watch",))
def plan(session: Session, paths: Paths) -> None:
    """Says what applying manifests would change, field by field, and what it means for messages.

    Changes nothing. The path - is standard input. In a cluster, the API server tries out what `kubectl apply`
    would do, with its rules and policies; -n is the namespace of manifests that name none. In the folder of
    `agentstream dev`, they are compared with what runs, and what they leave out would be removed.

    Exit codes: 0 if nothing would change; 1 if something would; 2 for invalid manifests, or if one would be
    refused; 3 if nothing can be reached.
    """
    from agentstream_operator.commands import planning

    planning.run(session, paths)
