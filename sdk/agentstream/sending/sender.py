"""Sends messages: each is added to its stream once, or the caller gets an error."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from agentstream.errors import (
    AgentStreamError,
    Backpressure,
    InvalidMessage,
    KeyMissing,
    SendFailed,
    StreamMissing,
    error_name,
)
from agentstream.identity.keyring import Keyring
from agentstream.payloads.contracts import Contracts
from agentstream.protocol.envelope import BROADCAST, decode
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Produces
from agentstream.routing.directory import Directory
from agentstream.sending.batcher import Batcher
from agentstream.sending.outgoing import OutgoingRecord
from agentstream.sent import SentMessage
from agentstream.telemetry.counters import FAILED, REFUSED, SHED, Counters
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import Argument, Client
from agentstream.transport.error_replies import passes
from agentstream.transport.retry import Backoff


class Sender:
    """Sends the messages of one agent."""

    def __init__(
        self, client: Client, directory: Directory, keyring: Keyring, counters: Counters, contracts: Contracts
    ) -> None:
        self._client = client
        self._directory = directory
        self._keyring = keyring
        self._counters = counters
        self._contracts = contracts
        self._batchers: dict[str, Batcher] = {}

    def send(self, record: OutgoingRecord) -> Coroutine[Any, Any, SentMessage]:
        """Adds a record to the stream that leads to its addressee; see `Agent.send_message`."""
        self._client.bind()
        sending = self._send(record, record.since)
        tracing = spans()
        return sending if tracing is None else tracing.sent(record, sending)

    def send_many(self, records: Sequence[OutgoingRecord]) -> Coroutine[Any, Any, list[SentMessage]]:
        """Adds records to the streams that lead to their addressees; see `Agent.send_many`."""
        self._client.bind()
        sending = self._send_many(records)
        tracing = spans()
        return sending if tracing is None else tracing.sent_many(records, sending)

    async def _send_many(self, records: Sequence[OutgoingRecord]) -> list[SentMessage]:
        for to, stream in dict.fromkeys((record.message.to, record.stream) for record in records):
            # `_send` waits below for a route that is not declared yet
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
        again = await asyncio.gather(*(self._send(records[i], now) for i in left), return_exceptions=True)
        for i, result in zip(left, again, strict=True):
            results[i] = result
        sent = [result for result in results if isinstance(result, SentMessage)]
        if len(sent) < len(results):
            raise SendFailed([result for result in results if result is not None])
        return sent

    async def close(self) -> None:
        """Stops sending; records that are still queued fail with ConnectionLost."""
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    async def _send(self, record: OutgoingRecord, now: float) -> SentMessage:
        """Offers a record until the server takes it, sheds it, or the deadline passes."""
        backoff: Backoff | None = None
        while True:
            try:
                entry = self._offer_at_once(record, now) or await self._offer(record, now)
                return record.sent(await entry)
            except Backpressure as error:
                self._refused(record, error)
                if record.on_full == "raise":
                    self._failed(error)
                    raise
                if record.on_full == "shed":
                    self._counters.add(SHED, record.produces.stream)
                    return record.sent("")
                failure: AgentStreamError = error
            except AgentStreamError as error:
                if not passes(error):
                    self._failed(error)
                    raise
                self._refused(record, error)
                self._directory.forget()
                failure = error
            backoff = backoff or Backoff(0.02, 1.0)
            delay = backoff.next()
            now = asyncio.get_running_loop().time() + delay
            if now >= record.deadline:
                self._failed(failure)
                raise failure
            await asyncio.sleep(delay)

    def _offer_at_once(self, record: OutgoingRecord, now: float) -> asyncio.Future[str] | None:
        """Offers a record if the route is cached and no contract has to be read."""
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
            # the contract is about JSON: check the encoded payload, not the Python objects
            contract.check(decode(record.data))
        return self._put(record, produces)

    def _put(self, record: OutgoingRecord, produces: Produces) -> asyncio.Future[str]:
        batcher = self._batchers.get(produces.key)
        if batcher is None:
            batcher = Batcher(self._client.call, produces, self._counters)
            self._batchers[produces.key] = batcher
        record.produces = produces
        if len(record.data) > produces.max_message_bytes:
            return _too_large(record)
        options: tuple[Argument, ...] = ()
        if record.once is not None:
            message = record.message
            options += ("once", batcher.keys.once(message.sender, message.to, record.once))
        if record.message.key is not None:
            options += ("key", record.message.key)
        if produces.broadcast and record.message.to == BROADCAST:
            options += ("receipts", batcher.keys.receipts)
        if record.trace:
            options += ("t", record.trace)
        record.options = options
        if self._keyring.signs(produces):
            now = asyncio.get_running_loop().time()
            record.sign_with(partial(self._keyring.signature, produces, record.data), now)
        elif record.signature:
            # left from an offer to another stream
            record.signature, record.signed_at = (), math.inf
        return batcher.put(record)

    async def _outcome(
        self, record: OutgoingRecord, entry: asyncio.Future[str]
    ) -> SentMessage | Exception | None:
        """Returns the result of an offer; None if the record has to be offered again."""
        try:
            return record.sent(await entry)
        except AgentStreamError as error:
            if not passes(error):
                self._failed(error)
                return error
            self._refused(record, error)
            return None
        except Exception as error:  # noqa: BLE001 - concerns this record only
            return error

    def _refused(self, record: OutgoingRecord, error: AgentStreamError) -> None:
        if isinstance(error, Backpressure | StreamMissing):
            self._counters.add(REFUSED, record.produces.stream, error_name(error))

    def _failed(self, error: AgentStreamError) -> None:
        self._counters.add(FAILED, error_name(error))


def _too_large(record: OutgoingRecord) -> asyncio.Future[str]:
    """The outcome of a message that its stream does not take."""
    stream, most = record.produces.stream, record.produces.max_message_bytes
    refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    refused.set_exception(
        InvalidMessage(
            f"the message has {len(record.data)} bytes, and {stream} takes {most} at most: send a"
            " reference to what is large, or raise maxMessageBytes of the AgentStream",
            reason=Reason.TOO_LARGE,
        )
    )
    return refused


def _abandon(entry: asyncio.Future[str] | None) -> None:
    """Cancels an offer, and marks its error as retrieved."""
    if entry is not None and not entry.cancel() and not entry.cancelled():
        entry.exception()
