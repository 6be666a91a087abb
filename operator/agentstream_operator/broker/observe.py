"""Reads the state of streams, many of them in one call, and of the consumers of a group."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from agentstream.errors import AgentStreamError, ProtocolError
from agentstream.protocol import commands
from agentstream.protocol.keys import StreamKeys, parse_consumer
from agentstream.transport.error_replies import error_from_reply, group_is_gone
from agentstream_operator.broker.server import BrokerClient
from agentstream_operator.plan.observed import ConsumerSeen, HeldSeen, StreamSeen

TOGETHER = 50
"""The most streams that one call reads: 1.5 ms, during which the server does nothing else."""

_HEARD, _OLDEST = 16, 10
"""The consumers that are asked for what they hold, and the entries of each."""

_decoder = msgspec.json.Decoder(StreamSeen)


class Look(NamedTuple):
    """A stream to read the state of, with retries, dead letters and counters of these groups.

    If the known state has not changed, it is neither sent nor decoded again.
    """

    key: str
    groups: Sequence[str]
    known: StreamSeen | None = None


async def measure(
    client: BrokerClient, looks: Sequence[Look], *, trusts_lag: bool
) -> list[StreamSeen | AgentStreamError]:
    """Reads the state of many streams. Returns for each the state, or the error that hides it.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    parts = [looks[first : first + TOGETHER] for first in range(0, len(looks), TOGETHER)]
    replies = await asyncio.gather(*(_measure(client, part, trusts_lag=trusts_lag) for part in parts))
    return [seen for reply in replies for seen in reply]


async def _measure(
    client: BrokerClient, looks: Sequence[Look], *, trusts_lag: bool
) -> list[StreamSeen | AgentStreamError]:
    streams = [(look.key, look.known.digest if look.known else "", look.groups) for look in looks]
    seen: list[StreamSeen | AgentStreamError] = []
    while len(seen) < len(looks):
        now, *replies = await client.call(*commands.measure(streams[len(seen) :], trusts_lag=trusts_lag))
        seen += [_seen(look, reply, now) for look, reply in zip(looks[len(seen) :], replies, strict=False)]
    return seen


def _seen(look: Look, reply: bytes, now: int) -> StreamSeen | AgentStreamError:
    if not reply and look.known is not None:
        return msgspec.structs.replace(look.known, now=now)
    if not reply.startswith(b"{"):
        return error_from_reply(reply.decode(errors="replace"), look.key)
    try:
        found = _decode(reply)
    except msgspec.MsgspecError as error:
        return ProtocolError(f"cannot read the reply of as1_measure for {look.key}: {error}")
    digest = hashlib.sha1(reply, usedforsecurity=False).hexdigest()
    return msgspec.structs.replace(found, now=now, digest=digest)


def _decode(reply: bytes) -> StreamSeen:
    try:
        return _decoder.decode(reply)
    except UnicodeDecodeError:
        # a foreign group's name may be any bytes
        return _decoder.decode(reply.decode(errors="replace"))


async def consumers(client: BrokerClient, key: str, group: str) -> tuple[ConsumerSeen, ...]:
    """Lists the consumers of a group; none if the group or the stream is missing.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    found = await _of_group(client, "XINFO", "CONSUMERS", key, group)
    fields = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in found)
    return tuple(ConsumerSeen(f[b"name"].decode(errors="replace"), f[b"pending"], f[b"idle"]) for f in fields)


async def held(client: BrokerClient, key: str, group: str, consumer: str, most: int) -> tuple[HeldSeen, ...]:
    """Lists the first pending entries of a consumer; none if it, the group or the stream is missing.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    # https://redis.io/docs/latest/commands/xpending/: [[id, consumer, idle, deliveries], ...]
    found = await _of_group(client, "XPENDING", key, group, "-", "+", str(most), consumer)
    return tuple(
        HeldSeen(entry.decode(), max(idle, 0), max(deliveries, 0))
        for entry, _, idle, deliveries in found or ()
    )


async def least_idle(client: BrokerClient, key: str, group: str) -> int | None:
    """Returns how long ago, in ms, a consumer last renewed what it holds; None if none holds any.

    Asks the few consumers that were heard last for their oldest entries, on the stream and the retry stream.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    streams = (key, StreamKeys(key).retry(group))
    found = await asyncio.gather(*(consumers(client, stream, group) for stream in streams))
    holders = [
        (seen.idle, stream, seen.name)
        for stream, each in zip(streams, found, strict=True)
        for seen in each
        if seen.pending
    ]
    asked = (held(client, stream, group, name, _OLDEST) for _, stream, name in sorted(holders)[:_HEARD])
    return min((entry.idle for each in await asyncio.gather(*asked) for entry in each), default=None)


async def holdings(client: BrokerClient, key: str, group: str) -> Counter[str]:
    """Counts the pending entries of each pod, on the stream and on the group's retry stream.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    streams = (key, StreamKeys(key).retry(group))
    # https://redis.io/docs/latest/commands/xpending/: count, first, last, [[consumer, count], ...]
    summaries = await asyncio.gather(*(_of_group(client, "XPENDING", stream, group) for stream in streams))
    held = Counter[str]()
    for _, _, _, holders in filter(None, summaries):
        for name, count in holders or ():
            pod, _ = parse_consumer(name.decode(errors="replace"))
            held[pod] += int(count)
    return held


async def _of_group(client: BrokerClient, *command: str) -> Any:
    """The reply to a command about a group; an empty list if there is no such group or stream."""
    try:
        return await client.call(*command)
    except AgentStreamError as error:
        if group_is_gone(error) or "no such key" in str(error):
            return []
        raise
