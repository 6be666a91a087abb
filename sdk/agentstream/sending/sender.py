"""Sending: a message is on its stream once, whatever happens on the way, or the caller gets an error."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Literal, overload

import msgspec

from agentstream.errors import (
    AgentStreamError,
    Backpressure,
    InvalidMessage,
    MessageExpired,
    NoRoute,
    SendFailed,
    SettingsError,
    StreamMissing,
    WireClosed,
    error_name,
)
from agentstream.identity.keyring import KeyMissing, Keyring
from agentstream.payloads.contracts import Contracts
from agentstream.protocol.envelope import Message, MessageType, decode, encode, is_reference, is_unicode
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import OFF, Produces
from agentstream.routing.directory import Directory
from agentstream.sending.batcher import Batcher, BatchRecord, Unanswered
from agentstream.sent import SentMessage
from agentstream.telemetry.counters import FAILED, REFUSED, REPEATED, SENDING, SHED, Counters
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import Argument, Client
from agentstream.transport.retry import Backoff

DEFAULT_TIMEOUT = 30.0
ROUTE_PATIENCE = 10.0
"""Seconds for which a message waits for a route that is not declared yet."""

# What trying again does not mend, or must not.
_FINAL = (NoRoute, InvalidMessage, SettingsError, MessageExpired, WireClosed, Unanswered)

OnFull = Literal["wait", "raise", "shed"]
"""What becomes of a message that finds its stream full."""


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One of several messages to send; see `Agent.send_message` for its fields."""

    type: MessageType
    payload: Any
    to: str | None = None
    stream: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expires_at: float | None = None
    key: str | None = None
    schema_version: int | None = None
    once: str | None = None


class OutgoingRecord(BatchRecord):
    """A message that fits the schema, and how it is to be sent.

    Args:
        message: the message.
        stream: name of the AgentStream, if the sender names one.
        once: a key of the sender's own, under which only one message is added within an hour.
        since: when it was to be sent, by the event loop's clock.
        timeout: for how many seconds it is tried from then on.
        patience: for how many of them it waits for a route that is not declared yet.

    Attributes:
        produces: where it was offered last.
        trace: the trace context that it carries; empty for none.

    Raises:
        InvalidMessage: it does not fit.
    """

    __slots__ = ("message", "once", "patience", "produces", "stream", "trace")

    def __init__(
        self,
        message: Message,
        stream: str | None,
        once: str | None,
        *,
        since: float,
        timeout: float,
        patience: float = ROUTE_PATIENCE,
    ) -> None:
        # found out later, it would be an error for all whose messages leave with this one
        if once is not None and not (is_reference(once) and is_unicode(once)):
            raise InvalidMessage("once= is a string of 1 to 512 characters")
        super().__init__(encode(message), since, since + timeout, message.expires_at)
        self.message: Message = message
        self.stream: str | None = stream
        self.once: str | None = once
        self.patience: float = patience
        self.produces: Produces
        self.trace: bytes = b""

    @property
    def offered_to(self) -> Produces | None:
        """The stream that it was offered to last; None if it was to none yet."""
        return getattr(self, "produces", None)

    def sent(self, entry: str) -> SentMessage:
        """That the server has it."""
        return SentMessage(self.message.id, self.produces.stream, entry)


class Sender:
    """Sends the messages of one agent.

    Args:
        client: the connection to send with.
        directory: where routes are looked up.
        keyring: the keys of signed streams.
        counters: where it is counted what becomes of messages.
        contracts: what payloads must be.
    """

    def __init__(
        self, client: Client, directory: Directory, keyring: Keyring, counters: Counters, contracts: Contracts
    ) -> None:
        self._client = client
        self._directory = directory
        self._keyring = keyring
        self._counters = counters
        self._contracts = contracts
        self._batchers: dict[str, Batcher] = {}

    @overload
    def send(
        self,
        message: Message,
        stream: str | None,
        timeout: float,
        *,
        once: str | None = None,
        on_full: Literal["wait", "raise"] = "wait",
    ) -> Coroutine[Any, Any, SentMessage]: ...

    @overload
    def send(
        self, message: Message, stream: str | None, timeout: float, *, once: str | None, on_full: OnFull
    ) -> Coroutine[Any, Any, SentMessage | None]: ...

    def send(
        self,
        message: Message,
        stream: str | None,
        timeout: float,
        *,
        once: str | None = None,
        on_full: OnFull = "wait",
    ) -> Coroutine[Any, Any, SentMessage | None]:
        """Puts a message on the stream that leads to its addressee; see `Agent.send_message`."""
        if on_full == "shed" and message.type != "event":
            raise InvalidMessage(f"only events may be shed, and this is a {message.type}")
        now = asyncio.get_running_loop().time()
        return self.post(OutgoingRecord(message, stream, once, since=now, timeout=timeout), on_full)

    @overload
    def post(self, record: OutgoingRecord) -> Coroutine[Any, Any, SentMessage]: ...

    @overload
    def post(self, record: OutgoingRecord, on_full: OnFull) -> Coroutine[Any, Any, SentMessage | None]: ...

    def post(
        self, record: OutgoingRecord, on_full: OnFull = "wait"
    ) -> Coroutine[Any, Any, SentMessage | None]:
        """The same with a letter, of which it can be seen where it was offered."""
        sending = self._send(record, on_full, record.since)
        tracing = spans()
        return sending if tracing is None else tracing.sent(record, sending)

    def send_many(self, records: Sequence[OutgoingRecord]) -> Coroutine[Any, Any, list[SentMessage]]:
        """Puts messages on the streams that lead to their addressees; see `Agent.send_many`."""
        sending = self._send_many(records)
        tracing = spans()
        return sending if tracing is None else tracing.sent_many(records, sending)

    async def _send_many(self, records: Sequence[OutgoingRecord]) -> list[SentMessage]:
        for to, stream in dict.fromkeys((record.message.to, record.stream) for record in records):
            # who is not declared yet is waited for below
            with contextlib.suppress(AgentStreamError):
                await self._directory.target(to, stream, 0)
        now = asyncio.get_running_loop().time()
        entries = [self._try_at_once(record, now) for record in records]
        results: list[SentMessage | BaseException | None] = []
        try:
            for record, entry in zip(records, entries, strict=True):
                results.append(None if entry is None else await self._outcome(record, entry))
        finally:
            for entry in entries:
                _abandon(entry)
        now = asyncio.get_running_loop().time()
        left = [i for i, result in enumerate(results) if result is None]
        again = await asyncio.gather(
            *(self._send(records[i], "wait", now) for i in left), return_exceptions=True
        )
        for i, result in zip(left, again, strict=True):
            results[i] = result
        sent = [result for result in results if isinstance(result, SentMessage)]
        if len(sent) < len(results):
            raise SendFailed([result for result in results if result is not None])
        return sent

    async def close(self) -> None:
        """Ends what is being sent."""
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    async def _send(self, record: OutgoingRecord, on_full: OnFull, now: float) -> SentMessage | None:
        """Offers a message until it is taken or its deadline is over."""
        backoff: Backoff | None = None
        while True:
            try:
                entry = self._offer_at_once(record, now) or await self._offer(record, now)
                return record.sent(await entry)
            except Backpressure as error:
                self._refused(record, error)
                if on_full == "raise":
                    self._failed(error)
                    raise
                if on_full == "shed":
                    self._counters.add(SHED, record.produces.stream)
                    return None
                failures: AgentStreamError = error
            except AgentStreamError as error:
                # a key may be on its way
                if isinstance(error, _FINAL) and not isinstance(error, KeyMissing):
                    self._failed(error)
                    raise
                self._refused(record, error)
                self._directory.forget()
                failures = error
            backoff = backoff or Backoff(0.02, 1.0)
            delay = backoff.next()
            now = asyncio.get_running_loop().time() + delay
            if now >= record.deadline:
                self._failed(failures)
                raise failures
            await asyncio.sleep(delay)

    def _offer_at_once(self, record: OutgoingRecord, now: float) -> asyncio.Future[str] | None:
        """Offers a message if it is known where to, and nothing has to be looked up for that."""
        produces = self._directory.known(record.message.to, record.stream, now)
        return None if produces is None or produces.contracts else self._put(record, produces)

    def _try_at_once(self, record: OutgoingRecord, now: float) -> asyncio.Future[str] | None:
        try:
            return self._offer_at_once(record, now)
        except KeyMissing:
            return None

    async def _offer(self, record: OutgoingRecord, now: float) -> asyncio.Future[str]:
        patience = min(record.patience, record.deadline - now)
        produces = await self._directory.target(record.message.to, record.stream, patience)
        record.produces = produces
        if produces.contracts:
            contract = await self._contracts.of(produces)
            # what is sent, which a payload that holds more than JSON becomes only in JSON
            contract.check(decode(record.data))
        return self._put(record, produces)

    def _put(self, record: OutgoingRecord, produces: Produces) -> asyncio.Future[str]:
        batcher = self._batchers.get(produces.key)
        if batcher is None:
            added = self._counters.histogram(SENDING, produces.stream).observe
            repeated = partial(self._counters.add, REPEATED, produces.stream)
            batcher = Batcher(self._client.call, StreamKeys(produces.key), added, repeated)
            self._batchers[produces.key] = batcher
        options: tuple[Argument, ...] = ()
        if record.once is not None:
            options += ("once", batcher.keys.once(record.once))
        if record.message.key is not None:
            options += ("key", record.message.key)
        if record.trace:
            options += ("t", record.trace)
        record.produces, record.options = produces, options
        if produces.signatures != OFF:
            now = asyncio.get_running_loop().time()
            record.sign_with(partial(self._keyring.signature, produces, record.data), now)
        elif record.signature:
            # it was offered to another stream before
            record.signature, record.signed_at = (), math.inf
        return batcher.put(record)

    async def _outcome(
        self, record: OutgoingRecord, entry: asyncio.Future[str]
    ) -> SentMessage | Exception | None:
        """What became of an offer; None if it is to be offered again."""
        try:
            return record.sent(await entry)
        except AgentStreamError as error:
            if isinstance(error, _FINAL):
                self._failed(error)
                return error
            self._refused(record, error)
            return None
        except Exception as error:  # noqa: BLE001 - it concerns this message only
            return error

    def _refused(self, record: OutgoingRecord, error: AgentStreamError) -> None:
        if isinstance(error, Backpressure | StreamMissing):
            self._counters.add(REFUSED, record.produces.stream, error_name(error))

    def _failed(self, error: AgentStreamError) -> None:
        self._counters.add(FAILED, error_name(error))


def _abandon(entry: asyncio.Future[str] | None) -> None:
    """Nobody waits for it any more, nor for its error."""
    if entry is not None and not entry.cancel() and not entry.cancelled():
        entry.exception()
