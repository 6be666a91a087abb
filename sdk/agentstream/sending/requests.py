"""Matches replies to the requests of one process.

Each process has a reply stream of its own. It is read only while a request is pending, always from the
beginning: replies are trimmed once they are read. A reply without a pending request is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from agentstream.errors import AgentStreamError, ConnectionLost, InvalidMessage, NoReply, RequestFailed
from agentstream.identity.keyring import Keyring
from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream.protocol.envelope import Message, decode
from agentstream.protocol.routes import OFF, WARN, Produces
from agentstream.protocol.signatures import answer_domain
from agentstream.sending.outgoing import OutgoingRecord
from agentstream.sending.replies import FAILURE, notice_of
from agentstream.telemetry.counters import ANSWERS_UNVERIFIED, Counters, is_worth_saying
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import Client
from agentstream.transport.retry import Backoff, FailureLog

DEFAULT_TIMEOUT = 60.0
_BLOCK = 2_000
READ_TIMEOUT = _BLOCK / 1000 + 5.0
"""Seconds without an answer of the server after which the connection for replies counts as broken."""

# How many answers are read at a time, and how many bytes of them if the next ones are as large as the last.
_PAGE, _BYTES = 500, 4 << 20
# So many new connections in a row that reading one answer broke show that somebody added what cannot be read.
_MOST_BROKEN = 4
_LAST = str((1 << 64) - 1)
_CLOSING_PATIENCE = 2.0
_log = logging.getLogger("agentstream")


class _Reply(msgspec.Struct, frozen=True):
    message: Message
    failure: str | None
    trace: bytes | None


@dataclass
class _PendingRequest:
    """A request without a reply; `dropped` counts replies without a valid signature."""

    record: OutgoingRecord
    reply: asyncio.Future[_Reply]
    dropped: int = 0


class Requests:
    """The pending requests of one process; `client` is for blocking reads of its reply stream.

    `key_of` makes the key of that stream of a token: only when it is needed, as processes that are forked off
    with the agent must not have the same one.
    """

    def __init__(
        self,
        key_of: Callable[[str], str],
        client: Client,
        keyring: Keyring,
        counters: Counters,
        cancel: Callable[[str, bytes], Awaitable[Any]],
    ) -> None:
        self._key_of = key_of
        self._client = client
        self._keyring = keyring
        self._counters = counters
        self._cancel = cancel
        self._notices: set[asyncio.Task[None]] = set()
        self._pending: dict[str, _PendingRequest] = {}
        self._reading: asyncio.Task[None] | None = None
        self._failures = FailureLog("read replies to requests")

    @cached_property
    def key(self) -> str:
        """The key of the reply stream."""
        return self._key_of(secrets.token_hex(16))

    async def ask(
        self, record: OutgoingRecord, send: Callable[[OutgoingRecord], Awaitable[Any]], timeout: float
    ) -> Message:
        """Sends a request with `send`, and waits for its reply; see `Agent.request`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        request, pending = record.message, _PendingRequest(record, loop.create_future())
        self._pending[request.id] = pending
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="read replies")
        try:
            try:
                await send(record)
            except AgentStreamError:
                # a reply proves that the request was sent, whatever error the sender got
                if not pending.reply.done():
                    raise
            async with asyncio.timeout_at(deadline):
                reply = await pending.reply
        except TimeoutError:
            dropped = f"; {pending.dropped} replies without a valid signature were dropped"
            raise NoReply(
                f"{request.to} did not answer the request {request.id} in {timeout:g} s"
                f"{dropped if pending.dropped else ''}"
            ) from None
        finally:
            del self._pending[request.id]
            was_offered = record.produces is not None
            if was_offered and (pending.reply.cancelled() or not pending.reply.done()):
                notice = asyncio.create_task(self._tell(request), name=f"cancel {request.id}")
                self._notices.add(notice)
                notice.add_done_callback(self._notices.discard)
        if (tracing := spans()) is not None:
            tracing.answered(reply.trace)
        if reply.failure is not None:
            why = f"{reply.failure}: {reply.message.payload.get('error', '')}".removesuffix(": ")
            raise RequestFailed(
                f"{reply.message.sender} dead-lettered the request {request.id}: {why}", reason=reply.failure
            )
        return reply.message

    async def _tell(self, request: Message) -> None:
        """Tells those who may handle a request that nobody waits for it any more."""
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_CLOSING_PATIENCE):
                await self._cancel(request.to, notice_of(request))

    async def close(self, unlink: Callable[..., Awaitable[Any]]) -> None:
        """Fails pending requests with ConnectionLost, and deletes the reply stream if the server answers."""
        if self._reading is None:
            return
        unanswered = [pending for pending in self._pending.values() if not pending.reply.done()]
        for pending in unanswered:
            pending.reply.set_exception(ConnectionLost("the agent was closed before the reply came"))
        telling = [self._tell(pending.record.message) for pending in unanswered if pending.record.produces]
        self._reading.cancel()
        await asyncio.gather(self._reading, *self._notices, *telling, return_exceptions=True)
        await self._client.close()
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_CLOSING_PATIENCE):
                await unlink("UNLINK", self.key)

    async def _read(self) -> None:
        """Reads replies while a request is pending."""
        backoff, largest, broken = Backoff(0.05, 1.0), 1, 0
        while self._pending:
            connects = self._client.connects
            try:
                if broken > _MOST_BROKEN:
                    await self._client.call("UNLINK", self.key)
                    _log.warning("deleted replies to requests: they are larger than what can be read")
                    broken = 0
                count = max(min(_BYTES // largest, _PAGE), 1)
                read = ("XREAD", "COUNT", count, "BLOCK", _BLOCK, "STREAMS", self.key, "0")
                for _, entries in await self._client.call(*read) or ():
                    largest = max(largest >> 1, 1, *(sum(map(len, fields)) for _, fields in entries))
                    for entry_id, fields in entries:
                        self._receive(entry_id.decode(), fields)
                    await self._client.call(*_forget(self.key, entries[-1][0]))
            except AgentStreamError as error:
                if isinstance(error, ConnectionLost):
                    largest = _BYTES
                    broken = broken + 1 if self._client.connects > connects else 0
                self._failures.failed(error)
                await asyncio.sleep(backoff.next())
            else:
                broken = 0
                backoff.reset()
                self._failures.recovered()

    def _receive(self, entry_id: str, fields: list[bytes]) -> None:
        entry = parse_entry(Source(self.key, retry=False), entry_id, fields)
        try:
            message = decode(entry.body or b"")
        except InvalidMessage as error:
            _log.warning("dropped an entry of the reply stream that is no message: %s", error)
            return
        pending = self._pending.get(message.correlation_id or "")
        sent_to = None if pending is None else pending.record.produces
        if pending is None or pending.reply.done() or sent_to is None:
            _log.debug("dropped the reply %s of %s: no request is pending", message.id, message.sender)
            return
        said = dict(zip(fields[::2], fields[1::2], strict=True)).get(FAILURE.encode())
        failure = None if said is None else said.decode(errors="replace")
        if self._accepts(sent_to, entry, failure):
            pending.reply.set_result(_Reply(message, failure, entry.trace))
        else:
            pending.dropped += 1

    def _accepts(self, sent_to: Produces, entry: Entry, failure: str | None) -> bool:
        """Whether a reply counts, by the signature policy of the stream that the request was sent to."""
        policy = self._keyring.policy(sent_to)
        if policy == OFF:
            return True
        flaw = self._keyring.flaw(sent_to.stream, answer_domain(self.key, failure), entry)
        if flaw is None:
            return True
        accepted = policy == WARN
        count = self._counters.add(ANSWERS_UNVERIFIED, sent_to.stream, flaw)
        if is_worth_saying(count):
            done = "accepted" if accepted else "dropped"
            text = "%s: %s a reply without a valid signature (%s, %d so far)"
            _log.warning(text, sent_to.stream, done, flaw, count)
        return accepted


def _forget(key: str, entry: bytes) -> tuple[str, ...]:
    """The command that deletes the entries up to one with this id."""
    milliseconds, sequence = entry.decode().split("-")
    if _LAST in (milliseconds, sequence):
        # whoever chose that id may have left none for other answers: the stream has to begin anew
        return ("UNLINK", key)
    return ("XTRIM", key, "MINID", f"{milliseconds}-{int(sequence) + 1}")
