"""Looks at a stream that may be of anybody, with commands that only read; the server needs no library."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from agentstream.errors import InvalidMessage
from agentstream.printable import printable
from agentstream.protocol.entry import Source, parse_entry
from agentstream.protocol.envelope import decode
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.scan import Call
from agentstream_operator.plan.takeover import LARGEST, ExistingGroup, ExistingStream

COMMANDS: Final = ("type", "time", "xinfo|stream", "xinfo|groups", "xpending", "xrevrange", "hgetall")
"""What a user needs who looks."""

_OWNER: Final = ("installation", "namespace", "name")
_PAGES, _PAGE = 50, 10
"""Entries of a stream that are looked at, the newest first; they may be large."""


class NoStream(Exception):  # noqa: N818 - named after what is wrong
    """There is no stream under a key; the message says what there is."""


async def look_at(call: Call, key: str) -> ExistingStream:
    """Looks at a stream.

    Raises:
        NoStream: there is none.
        AgentStreamError: as `Client.call`.
    """
    reply = await call("TYPE", key)
    kind = reply.decode() if isinstance(reply, bytes) else str(reply)
    if kind != "stream":
        what = "there is no such key" if kind == "none" else f"it is a {kind}"
        raise NoStream(f"{key} is no stream: {what}")
    time, info, groups, owner = await asyncio.gather(
        call("TIME"),
        call("XINFO", "STREAM", key),
        call("XINFO", "GROUPS", key),
        call("HGETALL", StreamKeys(key).meta),
    )
    fields, meta = _map(info), _map(owner)
    first = fields[b"first-entry"]
    newest = await _newest(call, key)
    sizes = [
        sum(map(len, entry)) for _, entry in (*newest, *(() if first in newest or not first else (first,)))
    ]
    senders = {_sender(key, entry) for _, entry in newest}
    return ExistingStream(
        now=int(time[0]) * 1000 + int(time[1]) // 1000,
        length=fields[b"length"],
        first=first[0].decode() if first else None,
        groups=tuple([await _group(call, key, _map(flat)) for flat in groups]),
        owner={name: _text(meta[name.encode()]) for name in _OWNER if name.encode() in meta},
        looked=len(newest),
        foreign=sum(_sender(key, entry) is None for _, entry in newest),
        oversized=sum(size > LARGEST for size in sizes),
        senders=tuple(sorted(filter(None, senders))),
    )


async def _group(call: Call, key: str, fields: dict[bytes, Any]) -> ExistingGroup:
    name, pending = fields[b"name"], fields[b"pending"]
    # https://redis.io/docs/latest/commands/xpending/: count, first, last, [[consumer, count], ...]
    holders = (await call("XPENDING", key, name))[3] if pending else ()
    last = fields[b"last-delivered-id"].decode()
    return ExistingGroup(_text(name), last, pending, tuple(_text(each[0]) for each in holders or ()))


async def _newest(call: Call, key: str) -> list[list[Any]]:
    """The newest entries: id and fields."""
    end, found = "+", list[list[Any]]()
    for _ in range(_PAGES):
        page = await call("XREVRANGE", key, end, "-", "COUNT", _PAGE)
        found += page
        if len(page) < _PAGE:
            break
        end = f"({page[-1][0].decode()}"
    return found


def _sender(key: str, fields: list[bytes]) -> str | None:
    """Who sent a message; None for an entry that is none."""
    try:
        return printable(decode(parse_entry(Source(key, retry=False), "0-0", fields).body or b"").sender, 100)
    except InvalidMessage:
        return None


def _map(flat: Iterable[Any]) -> dict[bytes, Any]:
    parts = list(flat)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _text(data: bytes) -> str:
    return printable(data.decode(errors="replace"), 200)
