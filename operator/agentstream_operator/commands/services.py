"""Commands that run services of a cluster, and the one that takes them down."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from agentstream.transport.endpoint import Endpoint
    from agentstream_operator.settings import MetricsOptions, OperatorOptions, QueueOptions

app = typer.Typer()
BAD_INPUT = 2
Result = TypeVar("Result")


def _port(name: str, text: str) -> Any:
    """Declares an option for a port; 0 is any free one."""
    return typer.Option(envvar=f"AGENTSTREAM_{name}", metavar="PORT", min=0, max=65535, help=text)


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
TlsDirectory = Annotated[
    Path,
    typer.Option(
        envvar="AGENTSTREAM_TLS_DIRECTORY",
        metavar="DIR",
        help="Directory with the serving certificate and its key: tls.crt and tls.key. "
        "Both are reloaded when they change.",
        file_okay=False,
        show_default=False,
    ),
]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(envvar="AGENTSTREAM_LOG_FORMAT", help="Format of log lines.")
]


@app.command()
def operator(
    redis_url_file: RedisUrlFile,
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    metrics_port: Annotated[int, _port("METRICS_PORT", "Port of /metrics.")] = 8080,
    health_port: Annotated[int, _port("HEALTH_PORT", "Port of /livez and /readyz.")] = 8081,
    metrics_of_each: Annotated[  # noqa: FBT002 - an option of the command line
        bool,
        typer.Option(
            envvar="AGENTSTREAM_METRICS_OF_EACH",
            help="Metrics of every stream, group and replay: about 50 series for each group.",
        ),
    ] = True,
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
        redis=endpoint_in(redis_url_file, redis_ca_file),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        metrics_port=metrics_port,
        health_port=health_port,
        metrics_of_each=metrics_of_each,
    )
    _configure(options, log_format)
    _run(run(options), ListenError, FatalError, AgentStreamError)


@app.command()
def metrics_server(
    redis_url_file: RedisUrlFile,
    tls_directory: TlsDirectory,
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
        redis=endpoint_in(redis_url_file, redis_ca_file),
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
def queue_server(
    redis_url_file: RedisUrlFile,
    tls_directory: TlsDirectory,
    redis_ca_file: RedisCaFile = None,
    namespace: Namespaces = None,
    installation: Installation = "agentstream",
    allow_key: AllowedKeys = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AGENTSTREAM_HOSTS",
            metavar="NAME",
            help="Name under which requests come, besides 127.0.0.1 and localhost; repeat for several.",
            show_default=False,
        ),
    ] = None,
    proxy_ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="AGENTSTREAM_PROXY_CA_FILE",
            metavar="FILE",
            help="CA of the certificates of proxies, which say who asks: X-Remote-User, X-Remote-Group.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    proxy_name: Annotated[
        list[str] | None,
        typer.Option(
            envvar="AGENTSTREAM_PROXY_NAMES",
            metavar="NAME",
            help="Common name of a proxy's certificate; repeat for several.",
            show_default=False,
        ),
    ] = None,
    console: Annotated[  # noqa: FBT002 - an option of the command line
        bool,
        typer.Option(envvar="AGENTSTREAM_CONSOLE", help="Serve the console beside the API."),
    ] = True,
    port: Annotated[int, _port("QUEUE_PORT", "Port of the HTTP API, with TLS.")] = 8443,
    health_port: Annotated[int, _port("HEALTH_PORT", "Port of /livez, /readyz and /metrics.")] = 8081,
    log_format: LogFormat = "text",
) -> None:
    """Runs the queue server: the HTTP API with backlogs, messages, dead letters and replays.

    Callers show a bearer token of the cluster, or come through a trusted proxy; Kubernetes decides what they
    may do. Reads Redis or Valkey, and writes nothing there: replays become StreamReplays, which the operator
    carries out. SIGTERM stops it in order.
    """
    from agentstream_operator.queue_server.main import run
    from agentstream_operator.queue_server.proxies import InvalidAuthority, read_authority
    from agentstream_operator.serve.http import ListenError
    from agentstream_operator.settings import QueueOptions

    try:
        if proxy_ca_file is not None:
            read_authority(proxy_ca_file)
    except InvalidAuthority as error:
        fail(f"--proxy-ca-file: {error}")
    options = QueueOptions(
        redis=endpoint_in(redis_url_file, redis_ca_file),
        namespaces=namespace or None,
        installation=installation,
        allowed_keys=allow_key or (),
        certificate=tls_directory / "tls.crt",
        key=tls_directory / "tls.key",
        port=port,
        health_port=health_port,
        hosts=host or (),
        proxy_ca_file=proxy_ca_file,
        proxy_names=proxy_name or (),
        console=console,
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


def fail(*lines: str, code: int = BAD_INPUT) -> NoReturn:
    """Prints errors, a line each, and ends the command."""
    from agentstream.printable import printable

    for line in lines:
        typer.echo(f"error: {printable(line)}", err=True)
    raise typer.Exit(code)


def endpoint_in(url_file: Path, ca_file: Path | None) -> Endpoint:
    """Reads the address of a server; ends the command if it cannot be read."""
    import ssl

    from agentstream.transport.endpoint import Endpoint

    try:
        url = url_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        # the message of the latter would quote the file
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        fail(f"--redis-url-file: cannot read {url_file}: {reason}")
    try:
        ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        fail(f"--redis-ca-file: {ca_file} is not a PEM certificate: {error}")
    return Endpoint(url, ca_file=str(ca_file) if ca_file is not None else None)


def _configure(options: OperatorOptions | MetricsOptions | QueueOptions, log_format: str) -> None:
    """Checks the options of a service, and configures its logging."""
    from agentstream_operator.logs import configure
    from agentstream_operator.settings import mistakes

    if wrong := list(mistakes(options)):
        fail(*wrong)
    configure(log_format)


def _run(work: Coroutine[Any, Any, Result], *failures: type[Exception]) -> Result:
    """Runs a coroutine; prints expected failures in a line."""
    import asyncio

    from agentstream_operator.cluster.connect import NoCluster

    try:
        return asyncio.run(work)
    except NoCluster as error:
        fail(" ".join(str(error).split()))
    except failures as error:
        fail(str(error), code=1)
