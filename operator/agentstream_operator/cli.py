"""The command `agentstream`. Each command imports what it needs itself: `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from agentstream_operator.commands import (
    console,
    dlq,
    doctor,
    lag,
    messages,
    plan,
    replay,
    send,
    services,
    takeover,
)
from agentstream_operator.commands.extra import Commands
from agentstream_operator.commands.plan import Paths
from agentstream_operator.commands.services import BAD_INPUT, fail

app = typer.Typer(
    name="agentstream",
    cls=Commands,
    help="Redis and Valkey streams for software agents, declared as Kubernetes resources.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # plain text: an error is one line, and `--help` needs not import rich
    rich_markup_mode=None,
    context_settings={"max_content_width": 110},
)
for _commands in (lag, dlq, replay, messages, console, send, plan, takeover, doctor, services):
    app.add_typer(_commands.app)


@app.command()
def dev(
    paths: Paths,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Stop after this time, for example 30s.")
    ] = None,
    until_idle: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Stop when messages were processed and there has been nothing to do for this time, "
            "or, with exit code 1, when something is broken and nothing moves any more.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port of Valkey on 127.0.0.1. Default: any free port.", show_default=False
        ),
    ] = None,
    api_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port of the HTTP API on 127.0.0.1. Default: any free port.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Directory for messages and credentials.")] = Path(
        ".agentstream"
    ),
    reload: Annotated[  # noqa: FBT002 - an option of the command line
        bool, typer.Option(help="Start agents again when Python files of their directories change.")
    ] = True,
    verbose: Annotated[  # noqa: FBT002 - the same
        bool,
        typer.Option("--verbose", help="Show the traceback of every failed attempt, not only of new errors."),
    ] = False,
    output: Annotated[
        Literal["text", "json"],
        typer.Option(help="Format of the summary. json: standard output has only the summary."),
    ] = "text",
) -> None:
    """Runs manifests on this machine: an embedded Valkey, agents as processes, no Kubernetes.

    The command of each ConsumerGroup's first container runs in as many processes as its autoscaling asks for,
    in the directory of the manifest or its workingDir; the image is ignored. For a group without a template,
    start the agent yourself, with AGENTSTREAM_BINDING=DIR/bindings/NAMESPACE.AGENT (DIR as in --data).

    Changes of the manifests and of the agents' code are applied while it runs. Ctrl-C stops the agents in
    order and prints a summary of all messages. Exit codes: 0; 1 if a message was lost or dead-lettered, or
    if --until-idle could not be reached; 2 for invalid input; 130 after a second Ctrl-C.
    """
    seconds, idle = _seconds("--for", for_), _seconds("--until-idle", until_idle)
    from agentstream_operator.local.dev import DevOptions, run
    from agentstream_operator.local.screen.output import LocalError

    try:
        code = run(DevOptions(paths, data, port, api_port, seconds, idle, output == "json", reload, verbose))
    except LocalError as error:
        fail(*error.lines)
    raise typer.Exit(code)


@app.command()
def validate(
    paths: Paths,
    output: Annotated[
        Literal["text", "json"],
        typer.Option(help="Format of the result. json: an object with resources, mistakes and warnings."),
    ] = "text",
) -> None:
    """Validates manifests, each by itself and all of them together; the path - is standard input.

    Give all files that belong together: a ConsumerGroup without its AgentStream is a mistake. Prints a line
    for each mistake and warning. Exit codes: 0; 2 for a mistake.
    """
    import json
    import sys

    from agentstream_operator.local.manifests.checks import check
    from agentstream_operator.local.manifests.loader import STDIN, load_manifests

    # without a standard input, Python has None in its place
    given = (sys.stdin.buffer.read() if sys.stdin is not None else b"") if STDIN in paths else None
    manifests = load_manifests(paths, given)
    found = check(manifests)
    if output == "json":
        keys = [str(key) for key in manifests.lines]
        typer.echo(json.dumps({"resources": keys, "mistakes": found.mistakes, "warnings": found.warnings}))
        raise typer.Exit(BAD_INPUT if found.mistakes else 0)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if found.mistakes:
        fail(*found.mistakes)
    count = len(manifests.lines)
    typer.echo(f"{count} resource{'' if count == 1 else 's'}, no mistakes")


@app.command()
def version() -> None:
    """Prints the version of agentstream-operator."""
    from importlib.metadata import version as installed

    typer.echo(installed("agentstream-operator"))


def main() -> None:
    """Runs the command line, as `agentstream` or as the plugin `kubectl agentstream`."""
    from agentstream_operator.commands.program import program

    app(prog_name=program())


def complete_plugin() -> None:
    """Completes `kubectl agentstream …` for kubectl, as the program `kubectl_complete-agentstream`.

    Its arguments are the words after the plugin's name. It prints what could follow, a line each, and `:4`,
    which keeps kubectl from offering files.
    """
    import contextlib
    import os
    import shlex
    import sys

    words = ["agentstream", *sys.argv[1:]]
    asked = {"_AGENTSTREAM_COMPLETE": "complete_bash", "COMP_WORDS": shlex.join(words)}
    os.environ |= asked | {"COMP_CWORD": str(len(words) - 1)}
    with contextlib.suppress(SystemExit):
        app(prog_name="agentstream")
    typer.echo(":4")


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    from agentstream_operator.resources.duration import parse_duration

    try:
        return parse_duration(text).seconds
    except ValueError as error:
        fail(f"{option}: {error}")
