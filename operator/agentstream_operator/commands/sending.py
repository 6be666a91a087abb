"""Sends a message as an agent; the one module here that uses the SDK as agents do."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec

from agentstream import (
    Agent,
    AgentStreamError,
    ConnectionLost,
    InvalidMessage,
    InvalidPayload,
    MessageOptions,
    NoReply,
    Settings,
)
from agentstream.protocol.signatures import decode_signing, entry_name
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.planning import running
from agentstream_operator.commands.session import Session
from agentstream_operator.commands.target import cluster, local_console
from agentstream_operator.queue_api.documents import Answer
from agentstream_operator.resources.duration import parse_duration
from agentstream_operator.resources.meta import ResourceKey


class Sending(NamedTuple):
    """The options of the command line."""

    type: Any
    sender: str | None
    correlation: str | None
    key: str | None
    timeout: str


class SentAnswer(Answer):
    """A message that was sent; or, with its payload, the answer that was waited for."""

    id: str
    stream: str
    entry: str | None = None
    payload: dict[str, Any] | None = None


class _Way(NamedTuple):
    """The way of a message: from one of its senders to an agent, or to all groups if that is None."""

    namespace: str
    stream: str
    to: str | None
    senders: Collection[str]


def run(session: Session, target: str, text: str, wish: Sending, *, wait: bool) -> None:
    """Sends a message, and prints where it is, or the payload of the answer.

    Raises:
        CommandFailed: it cannot be sent, or is not answered in time.
    """
    options = session.options
    if options.api is not None:
        raise CommandFailed(
            "--api: a message comes from an agent, with its credentials, and the HTTP API has none: use a "
            "kubeconfig, or the folder of a running `agentstream dev`",
            code=BAD_INPUT,
        )
    payload, timeout = _payload(text), _seconds(wish.timeout)
    console = local_console(options)
    if console is not None:
        way = _way(running(session, console.parent), target, session.namespace)
    else:
        namespace, _, name = target.rpartition("/")
        options = replace(options, namespace=namespace or options.namespace)
        way = _way(cluster().declared(options, name), name, None)
    if wait and way.to is None:
        raise CommandFailed("--wait: name a ConsumerGroup: all groups of a stream get it", code=BAD_INPUT)
    agent = _sender(way, wish.sender)
    credentials: AbstractContextManager[Mapping[str, str]] = (
        nullcontext(_entries(console.parent, way, agent))
        if console is not None
        else cluster().sending(options, way.namespace, agent)
    )
    # what the SDK tells operators of agents is in the error, too
    logging.getLogger("agentstream").addHandler(logging.NullHandler())
    try:
        with credentials as entries, TemporaryDirectory(prefix="agentstream-") as folder:
            settings = _settings(way.namespace, agent, entries, Path(folder))
            sent = asyncio.run(_send(settings, way, payload, wish, timeout if wait else None))
    except (InvalidMessage, InvalidPayload) as error:
        raise CommandFailed(str(error), code=BAD_INPUT) from error
    except NoReply as error:
        raise CommandFailed(f"{error}; `agentstream show ID` tells what becomes of it") from error
    except AgentStreamError as error:
        code = UNREACHABLE if isinstance(error, ConnectionLost) else NOT_SO
        raise CommandFailed(str(error), code=code) from error
    if session.printer.structured:
        session.printer.document(sent)
    elif sent.payload is not None:
        session.printer.line(json.dumps(sent.payload, ensure_ascii=False))
    else:
        session.printer.line(
            f"{sent.id} is on {way.namespace}/{sent.stream}: `agentstream show {sent.id[:8]}`"
        )


async def _send(
    settings: Settings, way: _Way, payload: dict[str, Any], wish: Sending, waiting: float | None
) -> SentAnswer:
    options: MessageOptions = {"stream": way.stream, "correlation_id": wish.correlation, "key": wish.key}
    async with Agent.connect(settings) as agent:
        if waiting is None or way.to is None:
            timeout = _seconds(wish.timeout)
            sent = await agent.send_message(
                type=wish.type, payload=payload, to=way.to, timeout=timeout, **options
            )
            return SentAnswer(id=sent.id, stream=sent.stream, entry=sent.entry)
        reply = await agent.request(to=way.to, payload=payload, type=wish.type, timeout=waiting, **options)
        return SentAnswer(id=reply.id, stream=way.stream, payload=dict(reply.payload))


def _payload(text: str) -> dict[str, Any]:
    data = (sys.stdin.buffer.read() if sys.stdin is not None else b"") if text == "-" else text.encode()
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CommandFailed(f"PAYLOAD is no JSON object: {error}", code=BAD_INPUT) from error


def _seconds(text: str) -> float:
    try:
        return parse_duration(text).seconds
    except ValueError as error:
        raise CommandFailed(f"--timeout: {error}", code=BAD_INPUT) from error


def _way(specs: Mapping[ResourceKey, Mapping[str, Any]], target: str, namespace: str | None) -> _Way:
    """Finds the group or the stream that is named, which must be in effect."""
    prefix, slash, name = target.rpartition("/")
    where = prefix if slash else namespace
    found = [key for key in specs if key.name == name and where in {None, key.namespace}]
    if not found:
        raise CommandFailed(f"there is no group and no stream {target}: `agentstream lag -A` lists all")
    if len({key.namespace for key in found}) > 1:
        names = ", ".join(sorted(key.namespace for key in found))
        raise CommandFailed(f"{target} is in several namespaces: say which with -n ({names})", code=BAD_INPUT)
    # a group, where a stream has the same name
    key = max(found)
    spec, stream, to = specs[key], key.name, None
    if key.kind == "ConsumerGroup":
        stream, to = spec["streamRef"]["name"], spec.get("agent") or key.name
    declared = specs.get(ResourceKey("AgentStream", key.namespace, stream), {})
    return _Way(key.namespace, stream, to, declared.get("producers") or ())


def _sender(way: _Way, named: str | None) -> str:
    """Who sends: the agent that is named, or the only one that may."""
    stream, names = f"{way.namespace}/{way.stream}", ", ".join(way.senders)
    if not way.senders:
        raise CommandFailed(f"no agent may send to {stream}: name one in spec.producers")
    if named is None and len(way.senders) > 1:
        raise CommandFailed(
            f"several agents may send to {stream}: say which with --as ({names})", code=BAD_INPUT
        )
    if named is not None and named not in way.senders:
        raise CommandFailed(
            f"{named} may not send to {stream}: name it in spec.producers; these may: {names}"
        )
    return named or next(iter(way.senders))


def _entries(data: Path, way: _Way, agent: str) -> dict[str, str]:
    """The binding of an agent of `agentstream dev`."""
    binding = data / "bindings" / f"{way.namespace}.{agent}"
    try:
        return {file.name: file.read_text(encoding="utf-8").strip() for file in binding.iterdir()}
    except OSError as error:
        raise CommandFailed(f"{agent} has no credentials yet: {error}", code=UNREACHABLE) from error


def _settings(namespace: str, agent: str, entries: Mapping[str, str], folder: Path) -> Settings:
    """The agent, with the credentials and keys of its binding; the server's CA, if any, goes into a file."""
    authority = folder / "ca.crt"
    if authority.name in entries:
        authority.write_text(entries[authority.name], encoding="utf-8")
    ca_file = str(authority) if authority.name in entries else None
    prefix = entry_name("")
    keys = {name.removeprefix(prefix): text for name, text in entries.items() if name.startswith(prefix)}
    return Settings(
        namespace=namespace,
        agent=agent,
        source=Endpoint(entries.get("uri", ""), entries.get("username"), entries.get("password"), ca_file),
        pod="agentstream-send",
        installation=entries.get("installation", "agentstream"),
        signing={stream: decode_signing(text) for stream, text in keys.items()},
    )
