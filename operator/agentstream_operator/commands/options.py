"""The options that say where the HTTP API is, and the API that they lead to."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """The options that say where the API is, and which namespace is meant."""

    namespace: str | None = None
    all_namespaces: bool = False
    context: str | None = None
    kubeconfig: Path | None = None
    api_namespace: str | None = None
    api: str | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ApiTarget:
    """The API, and what a request to it needs."""

    url: str
    token: Callable[[], str | None]
    """Returns the bearer token; called again when the API does not accept it any more."""

    namespace: str | None
    """The namespace that is meant where none is named; None: all."""

    place: str
    """What it is, for errors: `the API of agentstream dev in DIR`."""

    remedy: str
    """What to do when it does not answer."""

    verify: ssl.SSLContext | bool = True
    """Checks the certificate of the API."""

    proxies: bool = False
    """Whether proxies of the environment are used."""

    forwarded: bool = False
    """Whether the way to it ends with the command."""
