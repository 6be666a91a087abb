"""`agentstream import`: resources for a stream that exists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentstream_operator.commands.declare import reported
from agentstream_operator.commands.services import RedisCaFile

app = typer.Typer()


@app.command("import")
def import_(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the stream on Redis or Valkey.")],
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAMESPACE",
            help="Namespace of the resources. Default: that in a key such as {team-a.tasks}, else default.",
        ),
    ] = None,
    redis_url_file: Annotated[
        Path | None,
        typer.Option(
            envvar="AGENTSTREAM_REDIS_URL_FILE",
            metavar="FILE",
            help="File with the address of Redis or Valkey: redis://USER:PASSWORD@HOST:PORT. Default: the "
            "server of `agentstream dev` in this folder.",
            dir_okay=False,
        ),
    ] = None,
    redis_ca_file: RedisCaFile = None,
) -> None:
    """Prints an AgentStream and ConsumerGroups, as YAML, for a stream that exists: to take it over.

    It only reads. Retention is chosen so that nothing that is there is removed; comments say what cannot be
    declared, and what to look at. Apply the output to take the stream over, with the groups where they are.

    Exit codes: 0; 1 if there is no such stream, or it cannot be declared; 2 for invalid input; 3 if the
    server does not answer.
    """
    from agentstream_operator.commands import importing

    with reported():
        importing.run(key, namespace, redis_url_file, redis_ca_file)
