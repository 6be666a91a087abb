"""Entries of a group as the server hands them out, and how its replies are read."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from agentstream.protocol.envelope import Message

NOTHING = "0-0"
"""The predecessor of an entry that has none."""

_NAME_AND_VALUE = 2
_MILLISECONDS = re.compile(r"[0-9]{1,15}")
_ID = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")


class Source(msgspec.Struct, frozen=True):
    """One of the two streams that a group reads.

    Attributes:
        key: its key on the server.
        retry: whether it is the group's retry stream rather than the main stream.
    """

    key: str
    retry: bool


class EntryState(StrEnum):
    """How far an entry came here, as the release function wants to know it."""

    CLAIMED = "claimed"
    DELIVERED = "delivered"
    BEGUN = "begun"


class Header(msgspec.Struct, frozen=True):
    """Field `x` of an entry of a retry stream.

    Attributes:
        origin: the id of the entry on the main stream.
        attempts: attempts so far.
        fence: deliveries so far; None where they were as many as the attempts.
    """

    origin: str | None = None
    attempts: float = 0
    fence: float | None = None


class _Keyed(msgspec.Struct):
    key: str = ""


_keyed_decoder = msgspec.json.Decoder(_Keyed)


class Entry:
    """An entry that this consumer holds at one delivery.

    Attributes:
        source: the stream it was read from.
        id: its id there.
        counter: the delivery counter at which it is held; settling at any other is refused.
        body: the message; None if the entry has none.
        signature: its signature, if it has one.
        trace: the trace context of its sender, if that is traced.
        origin: its id on the main stream, the same for every attempt.
        after: the entry that was added before it with the same ordering key, `NOTHING` for the first; None if
            it has no key.
        earlier: attempts on other entries of the same message.
        earlier_fence: deliveries of other entries of the same message.
        started: whether its delivery counter includes the attempt that comes next.
        begun: whether a handler has it.
        message: what its body says, once that was read.
        payload: the message's, read as the handler wants it.
        since: when, at the earliest, the server gave it to this consumer, by `time.monotonic`.
        lease_until: when the lease runs out, by `time.monotonic`, the event loop's clock.
        renew_until: when the lease is to run out although this process is alive, by the same clock.
        lost: whether it is known that this consumer does not hold it any more.
        busy: whether a command that changes who holds it is under way, so that its counter may be out of
            date.
        finished: whether it is known that its group has finished it.
        outcome: whether it was still held when it was settled; None until it is.
    """

    # what most entries have stands here once, not in each of them
    message: Message
    payload: Any
    signature: bytes | None = None
    trace: bytes | None = None
    after: str | None = None
    earlier: int = 0
    earlier_fence: int = 0
    begun: bool = False
    lease_until: float = 0.0
    renew_until: float = math.inf
    lost: bool = False
    busy: bool = False
    finished: bool = False
    outcome: bool | None = None
    waiters: tuple[asyncio.Future[None], ...] = ()

    def __init__(
        self, source: Source, entry_id: str, counter: int, fields: list[bytes], *, started: bool
    ) -> None:
        self.source: Source = source
        self.id: str = entry_id
        self.origin: str = entry_id
        self.counter: int = counter
        self.started: bool = started
        self.since: float = time.monotonic()
        if len(fields) == _NAME_AND_VALUE and fields[0] == b"m":
            self.body: bytes | None = fields[1]
            return
        self.body = _field(fields, b"m")
        self.signature = _field(fields, b"s")
        self.trace = _field(fields, b"t")
        self.after = _predecessor(_field(fields, b"p"), entry_id)
        if source.retry:
            header = _header(_field(fields, b"x"))
            self.origin = header.origin or entry_id
            self.earlier = int(header.attempts)
            self.earlier_fence = self.earlier if header.fence is None else int(header.fence)

    @property
    def added(self) -> float:
        """When the server added the message to the main stream, in seconds since 1970; 0 if nobody knows."""
        milliseconds = self.origin.partition("-")[0]
        return int(milliseconds) / 1000 if _MILLISECONDS.fullmatch(milliseconds) else 0.0

    def settle(self, *, was_held: bool) -> None:
        """It is settled, or not held any more: tells those who wait for that."""
        self.outcome = was_held
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def settled(self) -> bool:
        """Whether it was still held when it was settled, as soon as that is known.

        Who is cancelled cancels nothing but waiting.
        """
        if self.outcome is None:
            waiter = asyncio.get_running_loop().create_future()
            self.waiters = (*self.waiters, waiter)
            await waiter
        return bool(self.outcome)

    @property
    def key(self) -> str:
        """Its ordering key, read without the rest of the message; empty if it cannot be read."""
        try:
            return _keyed_decoder.decode(self.body or b"{}").key
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ""

    @property
    def is_overdue(self) -> bool:
        """Whether renewing failed for so long that another consumer may have it."""
        return self.lease_until < time.monotonic()

    @property
    def attempts(self) -> int:
        """Attempts that were started, the one in hand included once it was."""
        return self.earlier + self.counter

    @property
    def unsettled(self) -> int:
        """Earlier attempts that ended without a word: what was retried or released is another entry."""
        return self.counter - self.started

    @property
    def fence(self) -> int:
        """How many deliveries of the message the group has seen: more at every one."""
        return self.earlier_fence + self.counter

    @property
    def state(self) -> EntryState:
        """How far it came."""
        if self.begun:
            return EntryState.BEGUN
        return EntryState.DELIVERED if self.started else EntryState.CLAIMED

    @property
    def next_attempt(self) -> int:
        """The number of the attempt that comes next, or that runs."""
        return self.earlier + self.counter + (not self.started)


def position(entry_id: str) -> tuple[int, int]:
    """Where an id stands among others; what is no id comes first."""
    found = _ID.fullmatch(entry_id)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_entries(reply: Any, sources: tuple[Source, ...]) -> Iterator[Entry]:
    """Entries in the reply of XREADGROUP for new ones: each is delivered for the first time."""
    by_key = {source.key.encode(): source for source in sources}
    for key, entries in reply or ():
        source = by_key[key]
        for entry_id, fields in entries:
            yield Entry(source, entry_id.decode(), 1, fields, started=True)


def claimed_entries(reply: Any, source: Source) -> Iterator[Entry]:
    """Entries in a reply of the take or sweep function: delivered before, and not yet started again."""
    for entry_id, counter, fields in reply:
        yield Entry(source, entry_id.decode(), counter, fields, started=False)


def _field(fields: list[bytes], name: bytes) -> bytes | None:
    for i in range(0, len(fields), 2):
        if fields[i] == name:
            return fields[i + 1]
    return None


def _predecessor(data: bytes | None, entry_id: str) -> str | None:
    if data is None:
        return None
    after = data.decode(errors="replace")
    # a producer may have made it up; who waits for what came earlier cannot wait in a circle
    return after if (0, 0) < position(after) < position(entry_id) else NOTHING


def _header(data: bytes | None) -> Header:
    try:
        return msgspec.json.decode(data or b"{}", type=Header)
    except msgspec.MsgspecError:
        return Header()
