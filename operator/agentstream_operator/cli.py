"""The command `agentstream`. What takes time to import is imported by the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

app = typer.Typer(
    name="agentstream",
    help="Durable streams for software agents, declared as resources.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...", help="Manifests, or directories whose manifests to read.", show_default=False
    ),
]


@app.command()
def dev(  # noqa: PLR0917 - the command line names its options
    paths: Paths,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="End after this time, such as 30s.")
    ] = None,
    until_idle: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="End when, after some work, nothing happened for this time."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the server; any free one if not given.")
    ] = None,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Where messages and credentials are kept.")
    ] = Path(".agentstream"),
    output: Annotated[
        Literal["text", "json"],
        typer.Option(help="How to print the summary; json: alone on standard output."),
    ] = "text",
) -> None:
    """Runs manifests on this machine, with a server of its own and without Kubernetes.

    The command of each ConsumerGroup's first container runs as that many processes as its backlog wants, from
    the current directory or the workingDir given; its image is ignored. A group without a template runs
    nothing: its agent is yours to start, with AGENTSTREAM_BINDING=DIR/bindings/NAMESPACE.AGENT.

    Manifests are read again when they change. Ctrl-C ends everything in order and prints what became of every
    message; the exit code is 1 if any was lost, and 2 if the input is wrong.
    """
    seconds, idle = _seconds("--for", for_), _seconds("--until-idle", until_idle)
    try:
        from agentstream_operator.local.dev import Options, run  # noqa: PLC0415
        from agentstream_operator.local.failure import LocalError  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        _fail(f"`agentstream dev` needs {missing.name}: pip install 'agentstream-operator[dev]'")
    try:
        code = run(Options(paths, data, port, seconds, idle, output == "json"))
    except LocalError as error:
        _fail(*error.lines)
    raise typer.Exit(code)


@app.command()
def validate(paths: Paths) -> None:
    """Checks manifests. Prints one line for each mistake and exits with 2 if there is any."""
    from agentstream_operator.local.manifests import load  # noqa: PLC0415

    manifests = load(paths)
    if manifests.problems:
        _fail(*manifests.problems)
    count = len(manifests.declared)
    typer.echo(f"{count} resource{'' if count == 1 else 's'}, no mistakes")


@app.command()
def version() -> None:
    """Prints the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    typer.echo(installed("agentstream-operator"))


def main() -> None:
    """Runs the command."""
    app()


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    from agentstream_operator.resources.duration import parse_duration  # noqa: PLC0415

    try:
        return parse_duration(text).seconds
    except ValueError as error:
        _fail(f"{option}: {error}")


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(BAD_INPUT)
