"""Options of the operator, of the metrics server and of the queue server, and their validation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentstream.protocol.keys import DNS_LABEL
from agentstream.transport.endpoint import Endpoint

_SCHEMES = ("redis", "rediss")


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """Options of the command line that all services have; `agentstream operator --help` describes them."""

    redis: Endpoint
    namespaces: Sequence[str] | None
    installation: str
    allowed_keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class OperatorOptions(ServiceOptions):
    """Options of `agentstream operator`."""

    metrics_port: int
    health_port: int
    metrics_of_each: bool = True  # whether there are metrics of single resources


@dataclass(frozen=True, slots=True)
class MetricsOptions(ServiceOptions):
    """Options of `agentstream metrics-server`."""

    certificate: Path
    key: Path
    port: int
    health_port: int


@dataclass(frozen=True, slots=True)
class QueueOptions(ServiceOptions):
    """Options of `agentstream queue-server`."""

    certificate: Path
    key: Path
    port: int
    health_port: int
    hosts: Sequence[str]
    proxy_ca_file: Path | None
    proxy_names: Sequence[str]
    console: bool


def mistakes(options: OperatorOptions | MetricsOptions | QueueOptions) -> Iterator[str]:
    """Validates options. Yields a line for each mistake, without passwords."""
    yield from _mistakes_in_url(options.redis.url)
    if not re.fullmatch(DNS_LABEL, options.installation):
        yield f"--installation: {options.installation!r} is not a DNS label (a-z, 0-9 and -)"
    for namespace in options.namespaces or ():
        if not re.fullmatch(DNS_LABEL, namespace):
            yield f"--namespace: {namespace!r} is not the name of a namespace"
    other, name = (
        (options.metrics_port, "--metrics-port")
        if isinstance(options, OperatorOptions)
        else (options.port, "--port")
    )
    if isinstance(options, QueueOptions) and options.proxy_ca_file is not None and not options.proxy_names:
        # any certificate of that CA could otherwise speak for everybody
        yield "--proxy-ca-file: name the proxies, too: --proxy-name is the common name of a certificate"
    if other == options.health_port != 0:
        yield f"{name} and --health-port: both are {other}; choose two ports"


def _mistakes_in_url(url: str) -> Iterator[str]:
    form = "write redis://USER:PASSWORD@HOST:PORT, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # the parser's message would quote a part of the password
        problem = "cannot parse the URL; percent-encode special characters in the password"
        yield f"--redis-url-file: {problem} ({form})"
        return
    if parts.scheme not in _SCHEMES or not host:
        yield f"--redis-url-file: not a redis:// or rediss:// URL with a host ({form})"
    elif port == 0:
        yield f"--redis-url-file: port 0 is not valid ({form})"
