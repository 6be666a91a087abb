"""`agentstream show`, `tail` and `trace`: one message, those that come, and those that belong together."""

from __future__ import annotations

from typing import Annotated

import typer

from agentstream_operator.commands.completion import streams
from agentstream_operator.commands.declare import command
from agentstream_operator.commands.session import Session

app = typer.Typer()

_Type = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Only task_request, task_result or event.")
]
_Sender = Annotated[str | None, typer.Option("--sender", metavar="AGENT", help="Only from this agent.")]
_Correlation = Annotated[str | None, typer.Option(metavar="ID", help="Only with this correlation id.")]
_Containing = Annotated[
    str | None,
    typer.Option("--grep", "-g", metavar="TEXT", help="Only with this in the JSON; case is ignored."),
]
_Limit = Annotated[
    int, typer.Option(metavar="N", min=1, help="Look at so many messages of each stream, the newest first.")
]


@command(app)
def show(
    session: Session,
    message: Annotated[
        str, typer.Argument(metavar="MESSAGE", help="An entry id, or a UUID or its beginning.")
    ],
    stream: Annotated[
        str | None,
        typer.Option("--stream", "-s", metavar="STREAM", help="Where it is.", autocompletion=streams),
    ] = None,
    limit: _Limit = 1_000_000,
) -> None:
    """Shows a message, and what became of it in each group.

    Waiting: no consumer has it yet. Held: a consumer has it. Retrying: due for another attempt. Delayed:
    waits for it. Dead: a dead letter. Acknowledged: the group is done with it, or began after it, or its dead
    letter was removed. NotAddressed: for another agent. Missing: gone from the stream before the group
    got it.

    Exit codes: 0; 1 if it is not there; 2 for invalid input; 3 if the API or the server does not answer.
    """
    from agentstream_operator.commands import message_states

    message_states.run(session, message, stream, limit)


@command(app, without=("watch",))
def tail(
    session: Session,
    stream: Annotated[
        str, typer.Argument(metavar="STREAM", help="Of this AgentStream.", autocompletion=streams)
    ],
    last: Annotated[int, typer.Option(metavar="N", min=0, max=500, help="Begin with the last N.")] = 10,
    type_: _Type = None,
    sender: _Sender = None,
    correlation: _Correlation = None,
    containing: _Containing = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="End after the last N.")] = False,  # noqa: FBT002
) -> None:
    """Shows messages of a stream as they come, until Ctrl-C; takes none of them from anybody.

    With -o json, each is a line.

    Exit codes: 0; 1 if there is no such stream; 2 for invalid input; 3 if the API or the server does not
    answer.
    """
    from agentstream_operator.commands import tailing

    wanted = tailing.Wanted(type_, sender, correlation, containing)
    tailing.run(session, stream, wanted, last, follow=not no_follow)


@command(app)
def trace(
    session: Session,
    correlation: Annotated[
        str, typer.Argument(metavar="CORRELATION", help="A correlation id, or the UUID of the first message.")
    ],
    limit: _Limit = 1_000_000,
) -> None:
    """Shows the messages of a conversation, over all streams of a namespace, the oldest first.

    Exit codes: 0; 1 if there are none; 2 for invalid input; 3 if the API or the server does not answer.
    """
    from agentstream_operator.commands import conversation

    session.shown(lambda: conversation.find(session, correlation, limit), conversation.show)
