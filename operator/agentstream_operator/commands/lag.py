"""`agentstream lag` and `agentstream top`: how much there is to do, and how fast it is done."""

from __future__ import annotations

from typing import Annotated

import typer

from agentstream_operator.commands.completion import groups
from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()

Group = Annotated[
    str | None,
    typer.Argument(
        metavar="[GROUP]", help="Only this ConsumerGroup.", autocompletion=groups, show_default=False
    ),
]


@command(app)
def lag(session: Session, group: Group = None) -> None:
    """Shows the backlog of each group: what waits, runs, is retried and is dead, and how long it will take.

    BACKLOG: messages that are not settled; a ~ marks an estimate. WAIT: no consumer has them yet. RUN: a
    consumer holds them. RETRY: due for another attempt. LATER: wait for theirs. DEAD: dead letters. OLDEST:
    age of the oldest one that is not settled. IN/S, OUT/S: rates. DRAIN: time until the backlog is gone at
    these rates. PODS: ready of wanted. What is not known is a ?, and never 0.

    Exit codes: 0; 1 if there is no such group; 2 for invalid input; 3 if the API or the server does not
    answer.
    """
    from agentstream_operator.commands import lag_table

    session.shown(lag_table.looker(session, group), lag_table.show)


@command(app, without=("output", "watch"))
def top(session: Session, group: Group = None) -> None:
    """Shows streams and groups, the largest backlog first, and goes on doing so until Ctrl-C."""
    from agentstream_operator.commands import lag_table

    session.printer.watch(lag_table.looker(session, group), lag_table.show_top)
