"""Opens a browser that is logged in to the console."""

from __future__ import annotations

import threading
import webbrowser

import typer
from pydantic import BaseModel

from agentstream_operator.commands.session import Session


class _Link(BaseModel):
    path: str


def run(session: Session, *, opens: bool) -> None:
    """Prints a link and opens it; waits where the way to the API ends with the command.

    Raises:
        CommandFailed: the API does not answer, or has no console.
    """
    link = session.target.url.rstrip("/") + session.api.post("/console/code", {}, _Link).path
    typer.echo(link)
    if opens:
        webbrowser.open(link)
    if session.target.forwarded:
        typer.echo("forwarding the port: Ctrl-C ends it", err=True)
        threading.Event().wait()
