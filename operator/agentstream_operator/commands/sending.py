"""Sends a message as an agent of `agentstream dev`; the one module here that uses the SDK as they do."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
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
from agentstream_operator.commands.failure import BAD_INPUT, NOT_SO, UNREACHABLE, CommandFailed
from agentstream_operator.commands.planning import running
from agentstream_operator.commands.session import Session
from agentstream_operator.commands.target import local_console
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
    console = local_console(session.options)
    if session.options.api is not None or console is None:
        raise CommandFailed(
            "a message comes from an agent, with its credentials: run the command in the folder of a running "
            "`agentstream dev`; in a cluster, send from a pod that mounts the agent's Secret",
            code=BAD_INPUT,
        )
    payload, timeout = _payload(text), _seconds(wish.timeout)
    way = _way(session, running(session, console.parent), target)
    if wait and way.to is None:
        raise CommandFailed("--wait: name a ConsumerGroup: all groups of a stream get it", code=BAD_INPUT)
    settings = _settings(console.parent, way, wish.sender)
    # what the SDK tells operators of agents is in the error, too
    logging.getLogger("agentstream").addHandler(logging.NullHandler())
    try:
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


def _way(session: Session, specs: Mapping[ResourceKey, Mapping[str, Any]], target: str) -> _Way:
    """Finds the group or the stream that is named, which must be in effect."""
    namespace, slash, name = target.rpartition("/")
    where = namespace if slash else session.namespace
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


def _settings(data: Path, way: _Way, sender: str | None) -> Settings:
    """The credentials of who sends: agents are told apart by them, and nobody sends without."""
    stream = f"{way.namespace}/{way.stream}"
    if not way.senders:
        raise CommandFailed(f"no agent may send to {stream}: name one in spec.producers")
    if sender is None and len(way.senders) > 1:
        names = ", ".join(way.senders)
        raise CommandFailed(
            f"several agents may send to {stream}: say which with --as ({names})", code=BAD_INPUT
        )
    agent = sender or next(iter(way.senders))
    binding = data / "bindings" / f"{way.namespace}.{agent}"
    if agent not in way.senders or not (binding / "password").exists():
        names = ", ".join(way.senders)
        raise CommandFailed(
            f"{agent} may not send to {stream}: name it in spec.producers; these may: {names}"
        )
    return Settings.from_env({"AGENTSTREAM_BINDING": str(binding), "AGENTSTREAM_POD": "agentstream-send"})
