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

RedisUrl = Annotated[
    str,
    typer.Option(
        envvar="AGENTSTREAM_REDIS_URL",
        metavar="URL",
        help="Where Redis or Valkey is, with the operator's credentials: redis://USER:PASSWORD@HOST:PORT "
        "(rediss:// for TLS). Rather in the environment than in arguments, which others can read.",
        show_default=False,
    ),
]
RedisCaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="AGENTSTREAM_REDIS_CA_FILE",
        metavar="FILE",
        help="Who vouches for the server, with rediss://; agents get it, too.",
        exists=True,
        dir_okay=False,
    ),
]
Namespaces = Annotated[
    list[str] | None,
    typer.Option(
        envvar="AGENTSTREAM_NAMESPACES", help="A namespace to watch; may be repeated. All if absent."
    ),
]
Installation = Annotated[
    str,
    typer.Option(
        envvar="AGENTSTREAM_INSTALLATION", help="What its users on the server and its Lease are named after."
    ),
]
AllowedKeys = Annotated[
    list[str] | None,
    typer.Option(
        envvar="AGENTSTREAM_ALLOW_KEYS",
        metavar="PATTERN",
        help="Stream keys that any namespace may claim; may be repeated.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(envvar="AGENTSTREAM_LOG_FORMAT", help="How to log.")
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
        from agentstream_operator.local.dev import DevOptions, run  # noqa: PLC0415
        from agentstream_operator.local.failure import LocalError  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        _fail(f"`agentstream dev` needs {missing.name}: pip install 'agentstream-operator[dev]'")
    try:
        code = run(DevOptions(paths, data, port, seconds, idle, output == "json"))
    except LocalError as error:
        _fail(*error.lines)
    raise typer.Exit(code)


@app.command()
def operator(  # noqa: PLR0917 - the command line names its options
    redis_url: RedisUrl,
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    metrics_port: Annotated[
        int, typer.Option(envvar="AGENTSTREAM_METRICS_PORT", min=0, max=65535, help="Serves /metrics.")
    ] = 8080,
    health_port: Annotated[
        int,
        typer.Option(envvar="AGENTSTREAM_HEALTH_PORT", min=0, max=65535, help="Answers /livez and /readyz."),
    ] = 8081,
    log_format: LogFormat = "text",
) -> None:
    """Reconciles AgentStreams and ConsumerGroups of a Kubernetes cluster.

    Runs in a pod, or outside with KUBECONFIG. Of several operators of one installation one acts at a time:
    the holder of the Lease agentstream-INSTALLATION in its own namespace. SIGTERM ends it in order.
    """
    import asyncio  # noqa: PLC0415

    from agentstream.errors import AgentStreamError  # noqa: PLC0415
    from agentstream.transport.endpoint import Endpoint  # noqa: PLC0415
    from agentstream_operator.cluster.connect import NoCluster  # noqa: PLC0415
    from agentstream_operator.logs import configure  # noqa: PLC0415
    from agentstream_operator.service import Fatal, run  # noqa: PLC0415
    from agentstream_operator.settings import OperatorOptions, mistakes  # noqa: PLC0415

    options = OperatorOptions(
        redis=Endpoint(redis_url, ca_file=str(redis_ca_file) if redis_ca_file is not None else None),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        metrics_port=metrics_port,
        health_port=health_port,
    )
    if wrong := list(mistakes(options)):
        _fail(*wrong)
    configure(log_format)
    try:
        asyncio.run(run(options))
    except NoCluster as error:
        _fail(str(error))
    except (Fatal, AgentStreamError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def metrics_server(  # noqa: PLR0917 - the command line names its options
    redis_url: RedisUrl,
    tls_directory: Annotated[
        Path,
        typer.Option(
            envvar="AGENTSTREAM_TLS_DIRECTORY",
            metavar="DIR",
            help="Where the server's certificate and key are: tls.crt and tls.key. "
            "They are read again when they change.",
            file_okay=False,
        ),
    ],
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    port: Annotated[
        int,
        typer.Option(
            envvar="AGENTSTREAM_EXTERNAL_PORT", min=0, max=65535, help="Serves external metrics, with TLS."
        ),
    ] = 6443,
    health_port: Annotated[
        int,
        typer.Option(
            envvar="AGENTSTREAM_HEALTH_PORT", min=0, max=65535, help="Answers /livez, /readyz and /metrics."
        ),
    ] = 8081,
    log_format: LogFormat = "text",
) -> None:
    """Answers groups' backlogs as external metrics (external.metrics.k8s.io), for autoscaling in mode HPA.

    Only the API server may ask, by its front-proxy certificate, for callers who may list the metric. It reads
    Redis or Valkey itself, and works without the operator. SIGTERM ends it in order.
    """
    import asyncio  # noqa: PLC0415

    from agentstream.transport.endpoint import Endpoint  # noqa: PLC0415
    from agentstream_operator.cluster.connect import NoCluster  # noqa: PLC0415
    from agentstream_operator.logs import configure  # noqa: PLC0415
    from agentstream_operator.metrics_api.main import run  # noqa: PLC0415
    from agentstream_operator.settings import MetricsOptions, mistakes  # noqa: PLC0415

    options = MetricsOptions(
        redis=Endpoint(redis_url, ca_file=str(redis_ca_file) if redis_ca_file is not None else None),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        certificate=tls_directory / "tls.crt",
        key=tls_directory / "tls.key",
        port=port,
        health_port=health_port,
    )
    if wrong := list(mistakes(options)):
        _fail(*wrong)
    configure(log_format)
    try:
        asyncio.run(run(options))
    except NoCluster as error:
        _fail(str(error))
    except OSError as error:
        typer.echo(f"error: cannot listen: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def remove_finalizers(
    namespace: Annotated[
        list[str] | None,
        typer.Option(envvar="AGENTSTREAM_NAMESPACES", help="Where; may be repeated. Everywhere if absent."),
    ] = None,
    stop_deployment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The operator's Deployment, which is scaled to zero before."),
    ] = None,
) -> None:
    """Takes the finalizers off all resources, so that they can be deleted without an operator.

    What is on the server stays there. For the time after which no operator runs any more.
    """
    import asyncio  # noqa: PLC0415

    from agentstream_operator.cluster.api import ApiError  # noqa: PLC0415
    from agentstream_operator.cluster.connect import NoCluster  # noqa: PLC0415
    from agentstream_operator.cluster.port import ClusterUnavailable  # noqa: PLC0415
    from agentstream_operator.cluster.uninstall import uninstall  # noqa: PLC0415

    try:
        count = asyncio.run(uninstall(namespace or None, stop_deployment))
    except NoCluster as error:
        _fail(str(error))
    except (ApiError, ClusterUnavailable) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{count} finalizer{'' if count == 1 else 's'} removed")


@app.command()
def validate(paths: Paths) -> None:
    """Checks manifests. Prints one line for each mistake and exits with 2 if there is any."""
    from agentstream_operator.local.manifests.load import load  # noqa: PLC0415

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
