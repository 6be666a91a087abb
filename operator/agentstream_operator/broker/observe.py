"""Reading everything about a stream in one call."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agentstream.errors import ProtocolError
from agentstream.keys import StreamKeys
from agentstream_operator.broker.connection import Connection
from agentstream_operator.plan.observed import StreamSeen

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
