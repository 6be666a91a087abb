"""Finds the HTTP API: of `agentstream dev` in this folder, of a cluster, or where `--api` says."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from agentstream_operator.commands.extra import KUBERNETES
from agentstream_operator.commands.failure import BAD_INPUT, UNREACHABLE, CommandFailed
from agentstream_operator.commands.options import ApiOptions, ApiTarget

CONSOLE = Path(".agentstream") / "console"
"""Where `agentstream dev` says how to reach its API, below the folder that it runs in."""

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TOO_LARGE = 65_536


class _Console(BaseModel):
    """What `agentstream dev` writes down about its API."""

    url: str
    token: str


@contextmanager
def find(options: ApiOptions) -> Iterator[ApiTarget]:
    """Finds the API; what leads to it stays open meanwhile.

    `--api` comes first, then options that only a cluster has, then `agentstream dev` in this folder or one
    above, then the kubeconfig.

    Raises:
        CommandFailed: there is none, or it cannot be reached.
    """
    if options.api is not None:
        yield _explicit(options.api, options.token_file)
        return
    if (console := local_console(options)) is not None:
        yield _local(console)
        return
    with cluster().forwarded(options) as target:
        yield target


def in_cluster(options: ApiOptions) -> bool:
    """Tells whether the options lead to a cluster, and not to an address or to `agentstream dev`."""
    return options.api is None and local_console(options) is None


def local_console(options: ApiOptions) -> Path | None:
    """Returns the file of the `agentstream dev` that is meant, if one is."""
    named = options.context or options.kubeconfig or options.api_namespace
    return None if named else console_file(Path.cwd())


def console_file(folder: Path) -> Path | None:
    """Returns the file of the `agentstream dev` that runs in this folder or one above it, if there is one."""
    for place in (folder, *folder.parents):
        if (place / CONSOLE).is_file():
            return place / CONSOLE
    return None


def _local(file: Path) -> ApiTarget:
    folder = file.parent.parent
    again = "start it again, or name a cluster: --context NAME"
    try:
        # in a folder that others may write to, it could be anybody's, and show anything
        if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
            raise CommandFailed(
                f"{file} belongs to another user: run the command in a folder of yours", code=BAD_INPUT
            )
        text = file.read_bytes()[:_TOO_LARGE]
        console = _Console.model_validate_json(text)
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror or error}", code=UNREACHABLE) from error
    except ValidationError as error:
        raise CommandFailed(
            f"{file} is not what `agentstream dev` writes: {again}", code=UNREACHABLE
        ) from error
    if urlsplit(console.url).hostname not in _LOOPBACK:
        raise CommandFailed(f"{file} does not name an address of this machine: {again}", code=UNREACHABLE)
    return ApiTarget(
        url=console.url,
        token=lambda: console.token,
        namespace=None,
        place=f"the API of `agentstream dev` in {folder}",
        remedy=f"it has ended: {again}",
    )


def _explicit(url: str, token_file: Path | None) -> ApiTarget:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and not parts.query
    except ValueError:
        valid = False
    if not valid:
        raise CommandFailed(
            f"--api: {url!r} is not an address such as https://queue.example.com", code=BAD_INPUT
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise CommandFailed(
            "--api: a token must not go over the network in clear text: use https", code=BAD_INPUT
        )
    if token_file is not None:
        _read_token(token_file)
    return ApiTarget(
        url=url.rstrip("/"),
        token=lambda: _read_token(token_file) if token_file is not None else None,
        namespace=None,
        place=f"the API at {url}",
        remedy="is the address right, and may this machine reach it?",
        verify=ssl.create_default_context(),
        proxies=parts.hostname not in _LOOPBACK,
    )


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        # the message of the latter would quote the file
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CommandFailed(f"--token-file: cannot read {file}: {reason}", code=BAD_INPUT) from error
    if not token or not token.isprintable() or " " in token:
        raise CommandFailed(f"--token-file: {file} does not hold a token in one line", code=BAD_INPUT)
    return token


def cluster() -> ModuleType:
    """Returns what reaches clusters: the module `forward`, which needs packages that a laptop may not have.

    Raises:
        CommandFailed: they are not installed.
    """
    try:
        from agentstream_operator.commands import forward
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in KUBERNETES:
            raise
        raise CommandFailed(
            "no `agentstream dev` runs in this folder, and a cluster needs more packages: "
            "pip install 'agentstream-operator[kubernetes]'",
            code=BAD_INPUT,
        ) from missing
    return forward
