"""What the operator and the metrics server are told, and what may be wrong with it."""

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
class OperatorOptions:
    """What the operator is to do.

    Attributes:
        redis: where Redis or Valkey is, with the operator's credentials.
        namespaces: those to watch; None for all.
        installation: what its users and its Lease are named after.
        allowed_keys: shell patterns of stream keys that any namespace may claim.
        metrics_port: where metrics are served.
        health_port: where probes are answered.
    """

    redis: Endpoint
    namespaces: Sequence[str] | None
    installation: str
    allowed_keys: Sequence[str]
    metrics_port: int
    health_port: int


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """What the metrics server is to do.

    Attributes:
        redis: where Redis or Valkey is, with credentials.
        namespaces: those whose groups are known; None for all.
        installation: what the operator's users are named after.
        allowed_keys: shell patterns of stream keys that any namespace may claim.
        certificate: a file with the server's certificate.
        key: a file with its private key.
        port: where metrics are served, with TLS.
        health_port: where probes and its own metrics are answered.
    """

    redis: Endpoint
    namespaces: Sequence[str] | None
    installation: str
    allowed_keys: Sequence[str]
    certificate: Path
    key: Path
    port: int
    health_port: int


def mistakes(options: OperatorOptions | MetricsOptions) -> Iterator[str]:
    """What is wrong with the options, a line each; never with a password in it."""
    yield from _mistakes_in_url(options.redis.url)
    if not re.fullmatch(DNS_LABEL, options.installation):
        yield f"--installation: {options.installation!r} is not a DNS label"
    for namespace in options.namespaces or ():
        if not re.fullmatch(DNS_LABEL, namespace):
            yield f"--namespace: {namespace!r} is not the name of a namespace"
    other, name = (
        (options.metrics_port, "--metrics-port")
        if isinstance(options, OperatorOptions)
        else (options.port, "--port")
    )
    if other == options.health_port != 0:
        yield f"{name} and --health-port: both are {other}"


def _mistakes_in_url(url: str) -> Iterator[str]:
    form = "write redis://USER:PASSWORD@HOST:PORT, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # the message would quote what may be a part of the password
        yield f"--redis-url: the address cannot be read: encode what is special in the password ({form})"
        return
    if parts.scheme not in _SCHEMES or not host:
        yield f"--redis-url: not the address of a server ({form})"
    elif port == 0:
        yield f"--redis-url: 0 is no port ({form})"
