"""Reading everything about a stream in one call."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agentstream.errors import AgentStreamError, ProtocolError
from agentstream.keys import StreamKeys
from agentstream.refusal import group_is_gone
from agentstream_operator.broker.connection import Connection
from agentstream_operator.plan.observed import ConsumerSeen, StreamSeen

_decoder = msgspec.json.Decoder(StreamSeen)


async def observe(connection: Connection, key: str, groups: Iterable[str], *, trusts_lag: bool) -> StreamSeen:
    """What the server holds of a stream: every group on it, and all that belongs to the given ones.

    Raises:
        ProtocolError: a key derived from the stream's holds what this version cannot read.
        AgentStreamError: as `Wire.call`.
    """
    reply = await connection.read("as1_observe", key, StreamKeys(key).base, int(trusts_lag), *groups)
    try:
        return _decoder.decode(reply)
    except UnicodeDecodeError:
        # a foreign group's name may be any bytes
        return _decoder.decode(reply.decode(errors="replace"))
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"{key}: as1_observe answered what cannot be read: {error}") from error


async def consumers(connection: Connection, key: str, group: str) -> tuple[ConsumerSeen, ...]:
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
