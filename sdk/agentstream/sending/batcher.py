"""Batches the records of one stream, and adds each batch to the stream once.

One numbered batch is in flight at a time. When its reply is lost, the batch is sent again under the same
number: the server remembers the result of a sender's last batch and returns it. So no record is added twice,
and records keep their order.

The server refuses batches of senders that it does not remember. A sender introduces itself under a new name,
and waits for the reply, before its first batch and where it may be forgotten: so a batch that arrives late is
refused, however late it is and whatever the server's clock shows.
"""

from __future__ import annotations

import asyncio
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
    StreamMissing,
    Unanswered,
    WireClosed,
)
from agentstream.protocol import commands
from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Produces
from agentstream.sending.outgoing import OutgoingRecord
from agentstream.telemetry.counters import REPEATED, SENDING, Counters
from agentstream.transport.retry import Backoff

# Limits of a batch: records, and bytes unless it has a single record. The first batch is smaller, so that the
# server adds it while the next one is gathered.
_MOST, _MOST_FIRST = 500, 64
_MOST_BYTES = 256 << 10
# Seconds for which the server remembers a batch after its last retry: till then no introduction is needed.
_REMEMBERED = 60.0
# The server needs a number also for a timeout of infinity.
_LONGEST_REMEMBERED = 30 * 86_400.0
# Seconds after which a signature is renewed.
_SIGNED_FOR = 60.0
# Seconds beyond its deadline that a record waits for the reply to the batch in flight.
_GRACE = 1.0
_REFUSALS: dict[str, Callable[[], AgentStreamError]] = {
    "BACKPRESSURE": lambda: Backpressure(
        "the stream holds as many unsettled entries as it may: `agentstream lag` names who is behind"
    ),
    "NOSTREAM": lambda: StreamMissing("the stream does not exist"),
}


class Batcher:
    """Adds the records of one stream in batches; `call` sends a command (see `Client.call`)."""

    def __init__(self, call: Callable[..., Awaitable[Any]], produces: Produces, counters: Counters) -> None:
        self.keys: StreamKeys = StreamKeys(produces.key)
        self._stream = produces.stream
        self._counters = counters
        self._seconds = counters.histogram(SENDING, produces.stream)
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._queue: deque[OutgoingRecord] = deque()
        self._in_flight: Sequence[OutgoingRecord] = ()
        self._doubt: Exception | None = None
        self._introducing = False
        # the name under which the server remembers this sender, the number of its last batch, and until when
        self._token = ""
        self._number = 0
        self._remembered_until = -math.inf
        self._sending: asyncio.Task[None] | None = None
        self._check: asyncio.TimerHandle | None = None
        self._check_at = math.inf

    def put(self, record: OutgoingRecord) -> asyncio.Future[str]:
        """Queues a record for the next batch. Returns a future with the id of its entry.

        The future's errors: after Backpressure, StreamMissing, MessageExpired and refusals of the server, the
        record is not on the stream; after Unanswered, that is unknown.
        """
        entry = record.entry = self._loop.create_future()
        self._queue.append(record)
        if record.deadline < self._check_at:
            self._check_deadlines_at(record.deadline)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name=f"batcher {self.keys.stream}")
        return entry

    async def close(self) -> None:
        """Stops sending; records in flight and in the queue fail with Unanswered."""
        if self._check is not None:
            self._check.cancel()
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        for record in self._in_flight:
            _fail(record, _unknown("the agent has ended"))
        for record in self._queue:
            _fail(record, _unsent("the agent has ended"))
        self._queue.clear()

    async def _send(self) -> None:
        most = _MOST_FIRST
        while self._queue:
            if self._loop.time() >= self._remembered_until:
                self._introducing = True
                await self._introduce()
                self._introducing = False
            batch = self._next_batch(most)
            if not batch:
                continue
            self._in_flight = batch
            results = await self._results(batch)
            self._in_flight, self._doubt = (), None
            if self._queue:
                # send the next batch before callers go on: the server adds it meanwhile
                self._loop.call_soon(self._resolve, batch, results)
            else:
                self._resolve(batch, results)
            most = _MOST
        self._sending = None

    async def _introduce(self) -> None:
        """Has the server remember this sender under a new name; if it refuses, fails what is queued."""
        backoff = Backoff(0.02, 1.0)
        while not _is_done(self._queue):
            # a new one for each try: an earlier one may arrive later
            token, lifetime, asked = secrets.token_hex(16), self._lifetime(self._queue), self._loop.time()
            try:
                await self._call(*commands.add(self.keys, token, 0, lifetime, ()))
            except Exception as error:  # noqa: BLE001 - every error is for the callers of `put`
                if not self._is_to_repeat(error):
                    refused = list(self._queue)
                    self._queue.clear()
                    self._resolve(refused, [error] * len(refused))
                    break
                self._doubt = error
                await asyncio.sleep(backoff.next())
            else:
                self._token, self._number = token, 0
                self._remembered_until = asked + lifetime / 1000
                break
        self._doubt = None

    def _next_batch(self, most: int) -> list[OutgoingRecord]:
        batch: list[OutgoingRecord] = []
        size = 0
        now = time.time()
        queue = self._queue
        while queue and len(batch) < most:
            record = queue[0]
            if (expiry := record.message.expires_at) is not None and expiry <= now:
                _fail(record, MessageExpired("expires_at was over before the message could be sent"))
            elif not record.entry.done():
                size += len(record.data)
                if size > _MOST_BYTES and batch:
                    break
                batch.append(record)
            queue.popleft()
        return batch

    async def _results(self, batch: list[OutgoingRecord]) -> Iterable[str | Exception]:
        """Returns the result of each record; repeats the batch until its last record is done.

        Returns none if all are done, or are queued again.
        """
        self._number += 1
        backoff = Backoff(0.02, 1.0)
        while True:
            results = await self._attempt(batch)
            if not isinstance(results, Exception):
                return results
            is_forgotten = isinstance(results, ServerRefused) and str(results).startswith("STALE")
            if is_forgotten:
                self._remembered_until = -math.inf
            if not self._is_to_repeat(results):
                self._number -= 1
                if not is_forgotten:
                    return [results] * len(batch)
                # the server never had the batch
                self._queue.extendleft(reversed(batch))
                return ()
            self._doubt = results
            if is_forgotten:
                # it may have lost the batch, too
                for record in batch:
                    _fail(record, _unknown(results))
            if not _is_done(batch):
                self._counters.add(REPEATED, self._stream)
                await asyncio.sleep(backoff.next())
            if _is_done(batch):
                # a command that arrives after the next batch is refused
                return ()

    def _is_to_repeat(self, error: Exception) -> bool:
        """Whether the server may have added the batch, at this attempt or an earlier one."""
        may_have_come = isinstance(error, ConnectionLost) or self._doubt is not None
        return may_have_come and not isinstance(error, WireClosed)

    async def _attempt(self, batch: list[OutgoingRecord]) -> Sequence[str] | Exception:
        now, lifetime = self._loop.time(), self._lifetime(batch)
        for record in batch:
            if record.signed_at < now - _SIGNED_FOR:
                record.sign_again(now)
        messages = chain.from_iterable([_arguments(record) for record in batch])
        try:
            reply: bytes = await self._call(
                *commands.add(self.keys, self._token, self._number, lifetime, messages)
            )
        except Exception as error:  # noqa: BLE001 - every error is for the callers of `put`
            return error
        self._remembered_until = now + lifetime / 1000
        return reply.decode().split(" ")[1:]

    def _lifetime(self, records: Iterable[OutgoingRecord]) -> int:
        """Returns for how many ms the server is to remember a batch that is sent now."""
        seconds = max([record.deadline for record in records]) - self._loop.time() + _GRACE + _REMEMBERED
        return int(min(_LONGEST_REMEMBERED, seconds) * 1000)

    def _resolve(self, batch: Iterable[OutgoingRecord], results: Iterable[str | Exception]) -> None:
        now = self._loop.time()
        # no results come where every record is done already
        for record, result in zip(batch, results, strict=False):
            entry = record.entry
            if entry.done():
                continue
            if isinstance(result, Exception):
                entry.set_exception(type(result)(*result.args))
            elif result in _REFUSALS:
                entry.set_exception(_REFUSALS[result]())
            else:
                entry.set_result(result)
                self._seconds.observe(now - record.since)

    def _check_deadlines_at(self, when: float) -> None:
        if self._check is not None:
            self._check.cancel()
        self._check = self._loop.call_at(when, self._check_deadlines)
        self._check_at = when

    def _check_deadlines(self) -> None:
        """Fails records after their deadline. One timer serves all: it is set to the first deadline."""
        self._check, self._check_at = None, math.inf
        # the timer's resolution
        now = self._loop.time() + 0.001
        patience = _GRACE if self._doubt is None else 0.0
        # what waits for an introduction is under way, too: the reply may say why it is refused
        waiting = patience if self._introducing else 0.0
        following = [
            *(_check(one, one.deadline + patience, now, _unknown(self._doubt)) for one in self._in_flight),
            *(_check(one, one.deadline + waiting, now, _unsent(self._doubt)) for one in self._queue),
        ]
        first = min(following, default=math.inf)
        if first < math.inf:
            self._check_deadlines_at(first)


def _arguments(record: OutgoingRecord) -> Command:
    if not record.options and not record.signature:
        return record.data, 0
    return commands.message(record.data, (*record.options, *record.signature))


def _check(record: OutgoingRecord, deadline: float, now: float, error: AgentStreamError) -> float:
    """Fails a record after its deadline. Returns when to check again."""
    if deadline > now:
        return math.inf if record.entry.done() else deadline
    _fail(record, error)
    return math.inf


def _is_done(batch: Iterable[OutgoingRecord]) -> bool:
    return all(record.entry.done() for record in batch)


def _fail(record: OutgoingRecord, error: AgentStreamError) -> None:
    if not record.entry.done():
        record.entry.set_exception(error)


def _unknown(cause: object) -> Unanswered:
    return Unanswered(f"whether the server has the message is not known: {cause or 'no reply in time'}")


def _unsent(cause: object) -> Unanswered:
    return Unanswered(f"the message was not sent: {cause or 'what was sent before has no reply yet'}")
