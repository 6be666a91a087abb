"""The command `agentstream`. Each command imports what it needs itself: `--help` answers at once."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

from agentstream_operator.commands import dlq, lag, replay
from agentstream_operator.commands.extra import Commands

if TYPE_CHECKING:
    from agentstream.transport.endpoint import Endpoint
    from agentstream_operator.settings import MetricsOptions, OperatorOptions

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
for _commands in (lag, dlq, replay):
    app.add_typer(_commands.app)

BAD_INPUT = 2
Result = TypeVar("Result")


def _port(name: str, text: str) -> Any:
    """Declares an option for a port; 0 is any free one."""
    return typer.Option(envvar=f"AGENTSTREAM_{name}", metavar="PORT", min=0, max=65535, help=text)


Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH...",
        help="Manifest files (.yaml, .yml, .json), or directories with such files.",
        show_default=False,
    ),
]

RedisUrlFile = Annotated[
    Path,
    typer.Option(
        envvar="AGENTSTREAM_REDIS_URL_FILE",
        metavar="FILE",
        help="File with the address of Redis or Valkey and the operator's credentials: "
        "redis://USER:PASSWORD@HOST:PORT (rediss:// for TLS). Others may read arguments and environments.",
        exists=True,
        dir_okay=False,
        show_default=False,
    ),
]
RedisCaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="AGENTSTREAM_REDIS_CA_FILE",
        metavar="FILE",
        help="CA certificate for rediss://; also written into agents' Secrets.",
        exists=True,
        dir_okay=False,
    ),
]
Namespaces = Annotated[
    list[str] | None,
    typer.Option(
        envvar="AGENTSTREAM_NAMESPACES",
        help="Namespace of the resources; repeat for several. Default: all namespaces.",
        show_default=False,
    ),
]
Installation = Annotated[
    str,
    typer.Option(
        envvar="AGENTSTREAM_INSTALLATION",
        help="Name of the installation: prefix of its users on the server, and part of its Lease's name.",
    ),
]
AllowedKeys = Annotated[
    list[str] | None,
    typer.Option(
        envvar="AGENTSTREAM_ALLOW_KEYS",
        metavar="PATTERN",
        help="Glob pattern of stream keys that any namespace may claim; repeat for several.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(envvar="AGENTSTREAM_LOG_FORMAT", help="Format of log lines.")
]


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
        code = run(DevOptions(paths, data, port, api_port, seconds, idle, output == "json", reload))
    except LocalError as error:
        _fail(*error.lines)
    raise typer.Exit(code)


@app.command()
def operator(
    redis_url_file: RedisUrlFile,
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    metrics_port: Annotated[int, _port("METRICS_PORT", "Port of /metrics.")] = 8080,
    health_port: Annotated[int, _port("HEALTH_PORT", "Port of /livez and /readyz.")] = 8081,
    log_format: LogFormat = "text",
) -> None:
    """Runs the operator: reconciles the AgentStreams and ConsumerGroups of a Kubernetes cluster.

    Runs in a pod, or outside the cluster with KUBECONFIG. Of several operators of one installation, only the
    holder of the Lease agentstream-INSTALLATION in its own namespace reconciles; the others stand by. SIGTERM
    stops it in order.
    """
    from agentstream.errors import AgentStreamError
    from agentstream_operator.serve.http import ListenError
    from agentstream_operator.service import FatalError, run
    from agentstream_operator.settings import OperatorOptions

    options = OperatorOptions(
        redis=_endpoint(redis_url_file, redis_ca_file),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        metrics_port=metrics_port,
        health_port=health_port,
    )
    _configure(options, log_format)
    _run(run(options), ListenError, FatalError, AgentStreamError)


@app.command()
def metrics_server(
    redis_url_file: RedisUrlFile,
    tls_directory: Annotated[
        Path,
        typer.Option(
            envvar="AGENTSTREAM_TLS_DIRECTORY",
            metavar="DIR",
            help="Directory with the serving certificate and its key: tls.crt and tls.key. "
            "Both are reloaded when they change.",
            file_okay=False,
        ),
    ],
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    port: Annotated[int, _port("EXTERNAL_PORT", "Port of external metrics, with TLS.")] = 6443,
    health_port: Annotated[int, _port("HEALTH_PORT", "Port of /livez, /readyz and /metrics.")] = 8081,
    log_format: LogFormat = "text",
) -> None:
    """Runs the metrics server: serves groups' backlogs as external metrics, for autoscaling in mode HPA.

    Serves the API external.metrics.k8s.io to the API server, identified by its front-proxy certificate, for
    users with the right to list the metric. Reads Redis or Valkey itself, and works while the operator is
    down. SIGTERM stops it in order.
    """
    from agentstream_operator.metrics_api.main import run
    from agentstream_operator.serve.http import ListenError
    from agentstream_operator.settings import MetricsOptions

    options = MetricsOptions(
        redis=_endpoint(redis_url_file, redis_ca_file),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        certificate=tls_directory / "tls.crt",
        key=tls_directory / "tls.key",
        port=port,
        health_port=health_port,
    )
    _configure(options, log_format)
    _run(run(options), ListenError)


@app.command()
def remove_finalizers(
    namespace: Namespaces = None,
    stop_deployment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Deployment of the operator, scaled to zero first."),
    ] = None,
) -> None:
    """Removes the finalizers of all resources, so that they can be deleted without the operator.

    For uninstalling. Streams, groups and users on Redis or Valkey are kept.
    """
    from agentstream_operator.cluster.api import ApiError
    from agentstream_operator.cluster.port import ClusterUnavailable
    from agentstream_operator.cluster.uninstall import uninstall

    count = _run(uninstall(namespace or None, stop_deployment), ApiError, ClusterUnavailable)
    typer.echo(f"{count} finalizer{'' if count == 1 else 's'} removed")


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
        _fail(*found.mistakes)
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


def _endpoint(url_file: Path, ca_file: Path | None) -> Endpoint:
    import ssl

    from agentstream.transport.endpoint import Endpoint

    try:
        url = url_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        # the message of the latter would quote the file
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        _fail(f"--redis-url-file: cannot read {url_file}: {reason}")
    try:
        ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        _fail(f"--redis-ca-file: {ca_file} is not a PEM certificate: {error}")
    return Endpoint(url, ca_file=str(ca_file) if ca_file is not None else None)


def _configure(options: OperatorOptions | MetricsOptions, log_format: str) -> None:
    """Checks the options of a service, and configures its logging."""
    from agentstream_operator.logs import configure
    from agentstream_operator.settings import mistakes

    if wrong := list(mistakes(options)):
        _fail(*wrong)
    configure(log_format)


def _run(work: Coroutine[Any, Any, Result], *failures: type[Exception]) -> Result:
    """Runs a coroutine; prints expected failures in a line."""
    import asyncio

    from agentstream_operator.cluster.connect import NoCluster

    try:
        return asyncio.run(work)
    except NoCluster as error:
        _fail(" ".join(str(error).split()))
    except failures as error:
        _fail(str(error), code=1)


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    from agentstream_operator.resources.duration import parse_duration

    try:
        return parse_duration(text).seconds
    except ValueError as error:
        _fail(f"{option}: {error}")


def _fail(*lines: str, code: int = BAD_INPUT) -> NoReturn:
    from agentstream.printable import printable

    for line in lines:
        typer.echo(f"error: {printable(line)}", err=True)
    raise typer.Exit(code)
