"""Reading everything about streams, many of them in one call."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from agentstream.errors import AgentStreamError, ProtocolError
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.error_replies import error_from_reply, group_is_gone
from agentstream_operator.broker.connection import BrokerClient
from agentstream_operator.plan.observed import ConsumerSeen, StreamSeen

TOGETHER = 50
"""The most streams that one call looks at: 1.5 ms, during which the server does nothing else."""

_decoder = msgspec.json.Decoder(StreamSeen)


class Look(NamedTuple):
    """A stream to look at.

    Attributes:
        key: its key.
        groups: those of its groups of which to see all that belongs to them.
        known: what was seen of it before. What has not changed since is neither sent nor read again.
    """

    key: str
    groups: Sequence[str]
    known: StreamSeen | None = None


async def measure(
    connection: BrokerClient, looks: Sequence[Look], *, trusts_lag: bool
) -> list[StreamSeen | AgentStreamError]:
    """What the server holds of each of many streams, or why that cannot be said of it.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    parts = [looks[first : first + TOGETHER] for first in range(0, len(looks), TOGETHER)]
    replies = await asyncio.gather(*(_ask(connection, part, trusts_lag=trusts_lag) for part in parts))
    return [seen for reply in replies for seen in reply]


async def _ask(
    connection: BrokerClient, looks: Sequence[Look], *, trusts_lag: bool
) -> list[StreamSeen | AgentStreamError]:
    keys = [look.key for look in looks]
    arguments = [argument for look in looks for argument in _asked(look)]
    now, *replies = await connection.read("as1_measure", keys, int(trusts_lag), *arguments)
    return [_seen(look, reply, now) for look, reply in zip(looks, replies, strict=True)]


def _asked(look: Look) -> Iterator[str | int]:
    yield StreamKeys(look.key).base
    yield look.known.digest if look.known is not None else ""
    yield len(look.groups)
    yield from look.groups


def _seen(look: Look, reply: bytes, now: int) -> StreamSeen | AgentStreamError:
    if not reply and look.known is not None:
        return msgspec.structs.replace(look.known, now=now)
    if not reply.startswith(b"{"):
        return error_from_reply(reply.decode(errors="replace"), look.key)
    try:
        found = _decode(reply)
    except msgspec.MsgspecError as error:
        return ProtocolError(f"{look.key}: as1_measure answered what cannot be read: {error}")
    digest = hashlib.sha1(reply, usedforsecurity=False).hexdigest()
    return msgspec.structs.replace(found, now=now, digest=digest)


def _decode(reply: bytes) -> StreamSeen:
    try:
        return _decoder.decode(reply)
    except UnicodeDecodeError:
        # a foreign group's name may be any bytes
        return _decoder.decode(reply.decode(errors="replace"))


async def consumers(connection: BrokerClient, key: str, group: str) -> tuple[ConsumerSeen, ...]:
    """The consumers of a group; none where group or stream are missing.

    Raises:
        AgentStreamError: as `Wire.call`.
    """
    try:
        found = await connection.call("XINFO", "CONSUMERS", key, group)
    except AgentStreamError as error:
        if group_is_gone(error) or "no such key" in str(error):
            return ()
        raise
    fields = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in found)
    return tuple(ConsumerSeen(f[b"name"].decode(errors="replace"), f[b"pending"], f[b"idle"]) for f in fields)
