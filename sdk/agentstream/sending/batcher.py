"""The outbox of one stream: messages leave it in numbered batches, each of which the server adds once.

One batch is under way at a time. Where its reply is lost, it is sent again, and the server, which keeps what
became of a sender's last batch, answers what it answered before. So nothing is doubled, and
messages stay in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from agentstream.errors import (
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    MessageExpired,
    ServerRefused,
    SettingsError,
    StreamMissing,
    WireClosed,
)
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.client import Argument
from agentstream.transport.retry import Backoff

# A batch has at most so many messages, and so many bytes of them unless it is a single one. The first of many
# is smaller: the server adds it while the next one is gathered.
_MOST, _MOST_FIRST = 500, 64
_MOST_BYTES = 256 << 10
# For how many seconds longer than it is repeated the server remembers a batch: what is sent last may travel a
# while.
_REMEMBERED = 60.0
# No longer than this, though, for whoever waits for ever: the server has to be given a number.
_LONGEST_REMEMBERED = 30 * 86_400.0
# For how many seconds a message travels with one signature.
_SIGNED_FOR = 60.0
# How many seconds beyond its deadline a message waits for the answer to what is under way.
_GRACE = 1.0
_REFUSALS: dict[str, Callable[[], AgentStreamError]] = {
    "BACKPRESSURE": lambda: Backpressure("the stream holds as many unsettled entries as it may"),
    "NOSTREAM": lambda: StreamMissing("the stream does not exist"),
}


class Unanswered(ConnectionLost):
    """Until the deadline there was no answer: the message must not be sent again under another number."""


class BatchRecord:
    """A message on its way.

    Args:
        data: the envelope.
        since: when it was to be sent, by the event loop's clock.
        deadline: until when it is tried, by the same clock.
        expires_at: when it loses its meaning, in seconds since 1970.

    Attributes:
        options: pairs of what the add function takes beside it: `once`, `key`, or the name of a field.
        signature: the field with its signature, if it has one.
        signed_at: when it was signed, by the event loop's clock.
        entry: the id of the message's entry, once the server has told it.
    """

    __slots__ = (
        "_sign",
        "data",
        "deadline",
        "entry",
        "expires_at",
        "options",
        "signature",
        "signed_at",
        "since",
    )

    def __init__(self, data: bytes, since: float, deadline: float, expires_at: float | None) -> None:
        self.data: bytes = data
        self.since: float = since
        self.deadline: float = deadline
        self.expires_at: float | None = expires_at
        self.options: Sequence[Argument] = ()
        self.signature: Sequence[Argument] = ()
        self.signed_at: float = math.inf
        self.entry: asyncio.Future[str]

    def sign_with(self, sign: Callable[[], Sequence[Argument]], now: float) -> None:
        """Signs the message now, and later if that takes long.

        Raises:
            SettingsError: there is no key.
        """
        self.signature = sign()
        self.signed_at = now
        self._sign = sign

    def sign_again(self, now: float) -> None:
        """Signs it once more: with an old signature it would be taken for a copy."""
        # where the key is gone meanwhile, the signature that there is has to do
        with contextlib.suppress(SettingsError):
            self.sign_with(self._sign, now)


class Batcher:
    """Messages for one stream.

    Args:
        call: sends a command and returns its reply; see `Wire.call`.
        keys: of the stream.
        on_added: called with the seconds that it took to add a message.
        on_repeat: called when a batch is to be sent again.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        keys: StreamKeys,
        on_added: Callable[[float], object],
        on_repeat: Callable[[], object],
    ) -> None:
        self.keys = keys
        self._on_added = on_added
        self._on_repeat = on_repeat
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._queue: deque[BatchRecord] = deque()
        self._under_way: Sequence[BatchRecord] = ()
        self._doubt: Exception | None = None
        self._token = secrets.token_hex(16)
        self._number = 0
        self._sending: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._check_at = math.inf

    def put(self, parcel: BatchRecord) -> asyncio.Future[str]:
        """Takes a message that is to leave with all others of this tick. The result is the id of its entry.

        Its errors: Backpressure, StreamMissing and whatever else the server refuses with mean that the
        message is not on the stream; so does MessageExpired. After Unanswered that is not known.
        """
        entry = parcel.entry = self._loop.create_future()
        self._queue.append(parcel)
        if parcel.deadline < self._check_at:
            self._check_deadlines_at(parcel.deadline)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name=f"outbox {self.keys.stream}")
        return entry

    async def close(self) -> None:
        """Ends what is being sent; what waits fails with Unanswered."""
        if self._check is not None:
            self._check.cancel()
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        for parcel in self._under_way:
            _fail(parcel, _unknown("the agent has ended"))
        for parcel in self._queue:
            _fail(parcel, _unsent("the agent has ended"))
        self._queue.clear()

    async def _send(self) -> None:
        most = _MOST_FIRST
        while batch := self._next_batch(most):
            self._under_way = batch
            results = await self._results(batch)
            self._under_way, self._doubt = (), None
            if self._queue:
                # callers go on after the next batch has left: the server adds it meanwhile
                self._loop.call_soon(self._resolve, batch, results)
            else:
                self._resolve(batch, results)
            most = _MOST
        self._sending = None

    def _next_batch(self, most: int) -> list[BatchRecord]:
        batch: list[BatchRecord] = []
        size = 0
        now = time.time()
        queue = self._queue
        while queue and len(batch) < most:
            parcel = queue[0]
            if parcel.expires_at is not None and parcel.expires_at <= now:
                _fail(parcel, MessageExpired("expires_at was over before the message could be sent"))
            elif not parcel.entry.done():
                size += len(parcel.data)
                if size > _MOST_BYTES and batch:
                    break
                batch.append(parcel)
            queue.popleft()
        return batch

    async def _results(self, batch: list[BatchRecord]) -> Iterable[str | Exception]:
        """What became of each message of a batch, which is repeated while somebody waits for it."""
        self._number += 1
        backoff = Backoff(0.02, 1.0)
        while True:
            results = await self._attempt(self._command(batch))
            if not isinstance(results, Exception):
                return results
            if not self._is_to_repeat(results):
                if not _is_stale(results):
                    self._number -= 1
                    return [results] * len(batch)
                # the server has lost its memory, and with it nothing of this one
                self._token, self._number = secrets.token_hex(16), 1
                continue
            self._doubt = results
            if _is_stale(results):
                # the server has lost its memory, and perhaps the batch with it
                for parcel in batch:
                    _fail(parcel, _unknown(results))
            if not _is_over(batch):
                self._on_repeat()
                await asyncio.sleep(backoff.next())
            if _is_over(batch):
                # should it still arrive after the next one, it is refused
                return ()

    def _is_to_repeat(self, error: Exception) -> bool:
        """Whether to send a batch again: the server may have added it, at this attempt or an earlier one."""
        if isinstance(error, WireClosed):
            return False
        return isinstance(error, ConnectionLost) or self._doubt is not None

    async def _attempt(self, command: tuple[Argument, ...]) -> Sequence[str] | Exception:
        try:
            reply: bytes = await self._call(*command)
            return reply.decode().split(" ")[1:]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is for those who wait
            return error

    def _command(self, batch: list[BatchRecord]) -> tuple[Argument, ...]:
        keys, now = self.keys, self._loop.time()
        for parcel in batch:
            if parcel.signed_at < now - _SIGNED_FOR:
                parcel.sign_again(now)
        seconds = max([parcel.deadline for parcel in batch]) - now + _GRACE + _REMEMBERED
        sent = (keys.sent(self._token), self._number, int(min(_LONGEST_REMEMBERED, seconds) * 1000))
        messages = chain.from_iterable([_arguments(parcel) for parcel in batch])
        return ("FCALL", "as1_add", 1, keys.stream, *sent, keys.gate, keys.order, *messages)

    def _resolve(self, batch: Iterable[BatchRecord], results: Iterable[str | Exception]) -> None:
        now = self._loop.time()
        # there are no results where nobody waits for them
        for parcel, result in zip(batch, results, strict=False):
            entry = parcel.entry
            if entry.done():
                continue
            if isinstance(result, Exception):
                entry.set_exception(type(result)(*result.args))
            elif result in _REFUSALS:
                entry.set_exception(_REFUSALS[result]())
            else:
                entry.set_result(result)
                self._on_added(now - parcel.since)

    def _check_deadlines_at(self, when: float) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check = self._loop.call_at(when, self._check_deadlines)
        self._check_at = when

    def _check_deadlines(self) -> None:
        """Gives up what is over. One timer serves all: it is set to the first deadline there is."""
        self._check, self._check_at = None, math.inf
        # as exact as the timer
        now = self._loop.time() + 0.001
        patience = _GRACE if self._doubt is None else 0.0
        following = [
            *(_check(one, one.deadline + patience, now, _unknown(self._doubt)) for one in self._under_way),
            *(_check(one, one.deadline, now, _unsent(self._doubt)) for one in self._queue),
        ]
        first = min(following, default=math.inf)
        if first < math.inf:
            self._check_deadlines_at(first)


def _arguments(parcel: BatchRecord) -> tuple[Argument, ...]:
    if not parcel.options and not parcel.signature:
        return parcel.data, 0
    options = (*parcel.options, *parcel.signature)
    return parcel.data, len(options), *options


def _check(parcel: BatchRecord, deadline: float, now: float, error: AgentStreamError) -> float:
    """Gives a message up if its deadline is over. Returns when to look again."""
    if deadline > now:
        return math.inf if parcel.entry.done() else deadline
    _fail(parcel, error)
    return math.inf


def _is_over(batch: Iterable[BatchRecord]) -> bool:
    return all(parcel.entry.done() for parcel in batch)


def _is_stale(error: Exception) -> bool:
    return isinstance(error, ServerRefused) and str(error).startswith("STALE")


def _fail(parcel: BatchRecord, error: AgentStreamError) -> None:
    if not parcel.entry.done():
        parcel.entry.set_exception(error)


def _unknown(cause: object) -> Unanswered:
    return Unanswered(f"whether the server has the message is not known: {cause or 'no reply in time'}")


def _unsent(cause: object) -> Unanswered:
    return Unanswered(f"the message was not sent: {cause or 'what was sent before has no reply yet'}")
