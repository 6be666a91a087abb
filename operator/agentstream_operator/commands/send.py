"""`agentstream send`: a message from an agent, and its answer."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from agentstream_operator.commands.completion import addressees
from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()


@command(app, without=("watch",))
def send(
    session: Session,
    target: Annotated[
        str,
        typer.Argument(
            metavar="GROUP|STREAM",
            help="A ConsumerGroup, whose agent gets it; or an AgentStream, for all its groups.",
            autocompletion=addressees,
            show_default=False,
        ),
    ],
    payload: Annotated[str, typer.Argument(help="A JSON object; - is standard input.", show_default=False)],
    type_: Annotated[
        Literal["task_request", "task_result", "event"], typer.Option("--type", help="Type of the message.")
    ] = "task_request",
    sender: Annotated[
        str | None,
        typer.Option("--as", metavar="AGENT", help="Who sends. Default: the only producer of the stream."),
    ] = None,
    correlation: Annotated[
        str | None, typer.Option(metavar="ID", help="What it answers or belongs to.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Ordering key.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer.")] = False,  # noqa: FBT002
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="For how long to try, and to wait for the answer.")
    ] = "30s",
) -> None:
    """Sends a message, as an agent with its own credentials; --wait prints the answer's payload.

    The agent must be a producer of the stream. In the folder of `agentstream dev` its credentials are there;
    in a cluster, you need to read its Secret, and to forward a port to the server where that is a Service.
    After Ctrl-C the message is handled all the same.

    Exit codes: 0; 1 if it could not be sent, or there was no answer in time; 2 for invalid input; 3 if
    nothing answers.
    """
    from agentstream_operator.commands import sending

    options = sending.Sending(type_, sender, correlation, key, timeout)
    sending.run(session, target, payload, options, wait=wait)
