"""Looks at a stream on the server, and prints resources for it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost, SettingsError
from agentstream.printable import printable
from agentstream.protocol.keys import DNS_LABEL
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.existing import COMMANDS, NoStream, look_at
from agentstream_operator.commands.failure import BAD_INPUT, UNREACHABLE, CommandFailed
from agentstream_operator.commands.options import ApiOptions
from agentstream_operator.commands.output import Printer
from agentstream_operator.commands.services import endpoint_in
from agentstream_operator.commands.target import local_console
from agentstream_operator.local.server.datadir import running_url
from agentstream_operator.plan.takeover import Declared, ExistingStream, take_over
from agentstream_operator.resources.parse import InvalidResource

_LARGEST_REPLY = 2 << 30
"""Bytes: a foreign stream may have entries of any size, and a few are read at a time."""


def run(key: str, namespace: str | None, url_file: Path | None, ca_file: Path | None) -> None:
    """Prints resources for a stream.

    Raises:
        CommandFailed: there is no such stream, no resource can have its key, or the server does not answer.
    """
    if namespace is not None and not re.fullmatch(DNS_LABEL, namespace):
        raise CommandFailed(f"--namespace: {namespace!r} is not the name of a namespace", code=BAD_INPUT)
    endpoint = _endpoint(url_file, ca_file)
    try:
        existing = asyncio.run(_look(endpoint, key))
    except NoStream as error:
        raise CommandFailed(str(error)) from error
    except SettingsError as error:
        raise CommandFailed(str(error), code=BAD_INPUT) from error
    except AccessDenied as error:
        needed = " ".join(f"+{name}" for name in COMMANDS)
        raise CommandFailed(f"{error}: who imports needs {needed} on {key}*") from error
    except ConnectionLost as error:
        raise CommandFailed(f"the server does not answer: {error}", code=UNREACHABLE) from error
    except AgentStreamError as error:
        raise CommandFailed(f"the server refuses it: {error}") from error
    try:
        found = take_over(existing, key, namespace)
    except InvalidResource as error:
        raise CommandFailed(
            *(f"no AgentStream can have it: {problem}" for problem in error.problems)
        ) from error
    Printer(sys.stdout).raw("".join(f"{line}\n" for each in found for line in _lines(each)))


async def _look(endpoint: Endpoint, key: str) -> ExistingStream:
    client = Client(lambda: endpoint, name="agentstream-import", largest_reply=_LARGEST_REPLY)
    try:
        return await look_at(client.call, key)
    finally:
        await client.close()


def _endpoint(url_file: Path | None, ca_file: Path | None) -> Endpoint:
    if url_file is not None:
        return endpoint_in(url_file, ca_file)
    console = local_console(ApiOptions())
    if console is None:
        raise CommandFailed(
            "which server? --redis-url-file FILE names it, or run the command in the folder of a running "
            "`agentstream dev`",
            code=BAD_INPUT,
        )
    try:
        return Endpoint(running_url(console.parent))
    except (OSError, LookupError) as error:
        raise CommandFailed(f"`agentstream dev` has ended: {error}", code=UNREACHABLE) from error


def _lines(declared: Declared) -> Iterator[str]:
    """The lines of a document: comments first, which somebody else may have written parts of."""
    yield "---"
    yield from (f"# {printable(note, 1_000)}" for note in declared.notes)
    if declared.manifest is not None:
        yield from yaml.safe_dump(declared.manifest, sort_keys=False).splitlines()
