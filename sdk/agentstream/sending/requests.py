"""Requests: messages whose answer the sender waits for.

Each process has a stream of its own for answers. It is read only while somebody waits, from its beginning:
what was read is trimmed, so nothing else is in it. An answer that nobody waits for is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agentstream.errors import AgentStreamError, ConnectionLost, InvalidMessage, NoReply, RequestFailed
from agentstream.identity.keyring import Keyring
from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream.protocol.envelope import Message, decode
from agentstream.protocol.routes import OFF, WARN, Produces
from agentstream.protocol.signatures import answer_domain
from agentstream.sending.replies import FAILURE
from agentstream.sending.sender import OutgoingRecord
from agentstream.telemetry.counters import ANSWERS_UNVERIFIED, Counters, is_worth_saying
from agentstream.telemetry.tracing import spans
from agentstream.transport.client import Client
from agentstream.transport.retry import Backoff, FailureLog

DEFAULT_TIMEOUT = 60.0
_BLOCK = 2_000
READ_TIMEOUT = _BLOCK / 1000 + 5.0
"""Seconds after which the connection for answers counts as broken without a reply."""

_PAGE = 500
_CLOSING_PATIENCE = 2.0
_log = logging.getLogger("agentstream")


class _Answer(msgspec.Struct, frozen=True):
    message: Message
    failure: str | None
    trace: bytes | None


class _Question:
    """A request that is not answered yet.

    Attributes:
        record: the request.
        answered: the answer, once it has come.
        refused: how many answers did not count.
    """

    def __init__(self, record: OutgoingRecord) -> None:
        self.record = record
        self.answered: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self.refused = 0


class Requests:
    """The requests of one process that are not answered yet.

    Args:
        key: the stream for answers.
        client: the connection to read it with; nobody else uses it.
        keyring: the keys of signed streams.
        counters: where answers without a valid signature are counted.
    """

    def __init__(self, key: str, client: Client, keyring: Keyring, counters: Counters) -> None:
        self.key = key
        self._client = client
        self._keyring = keyring
        self._counters = counters
        self._waiting: dict[str, _Question] = {}
        self._reading: asyncio.Task[None] | None = None
        self._failures = FailureLog("read answers to requests")

    async def ask(
        self,
        record: OutgoingRecord,
        send: Callable[[OutgoingRecord], Awaitable[Any]],
        timeout: float,
    ) -> Message:
        """Sends a request and waits for its answer; see `Agent.request`.

        Args:
            record: the request; answers to it go to this stream.
            send: sends it.
            timeout: for how many seconds to wait.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        request, question = record.message, _Question(record)
        self._waiting[request.id], answered = question, question.answered
        self._listen()
        try:
            try:
                await send(record)
            except AgentStreamError:
                # an answer says that it was sent, whatever the sender was told
                if not answered.done():
                    raise
            async with asyncio.timeout_at(deadline):
                answer = await answered
        except TimeoutError:
            dropped = f"; {question.refused} answers without a valid signature were dropped"
            raise NoReply(
                f"{request.to} did not answer the request {request.id} in {timeout:g} s"
                f"{dropped if question.refused else ''}"
            ) from None
        finally:
            del self._waiting[request.id]
        if (tracing := spans()) is not None:
            tracing.answered(answer.trace)
        if answer.failure is not None:
            why = f"{answer.failure}: {answer.message.payload.get('error', '')}".removesuffix(": ")
            raise RequestFailed(
                f"{answer.message.sender} gave the request {request.id} up: {why}", reason=answer.failure
            )
        return answer.message

    async def close(self, unlink: Callable[..., Awaitable[Any]]) -> None:
        """Ends all waiting with `ConnectionLost`, and removes the stream if the server can be reached.

        Args:
            unlink: sends a command.
        """
        if self._reading is None:
            return
        for question in self._waiting.values():
            if not question.answered.done():
                question.answered.set_exception(ConnectionLost("the agent was closed before the answer came"))
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._client.close()
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_CLOSING_PATIENCE):
                await unlink("UNLINK", self.key)

    def _listen(self) -> None:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="read answers")

    async def _read(self) -> None:
        """Hands out answers as long as somebody waits for one."""
        backoff = Backoff(0.05, 1.0)
        while self._waiting:
            try:
                read = ("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK, "STREAMS", self.key, "0")
                for _, entries in await self._client.call(*read) or ():
                    for entry_id, fields in entries:
                        self._came(entry_id.decode(), fields)
                    await self._client.call("XTRIM", self.key, "MINID", _after(entries[-1][0]))
            except AgentStreamError as error:
                self._failures.failed(error)
                await asyncio.sleep(backoff.next())
            else:
                backoff.reset()
                self._failures.recovered()

    def _came(self, entry_id: str, fields: list[bytes]) -> None:
        entry = parse_entry(Source(self.key, retry=False), entry_id, fields)
        try:
            message = decode(entry.body or b"")
        except InvalidMessage as error:
            _log.warning("somebody added what is no message to the answers: %s", error)
            return
        question = self._waiting.get(message.correlation_id or "")
        sent_to = None if question is None else question.record.offered_to
        if question is None or question.answered.done() or sent_to is None:
            _log.debug("nobody waits for the answer %s of %s", message.id, message.sender)
            return
        said = dict(zip(fields[::2], fields[1::2], strict=True)).get(FAILURE.encode())
        failure = None if said is None else said.decode(errors="replace")
        if self._counts(sent_to, entry, failure):
            question.answered.set_result(_Answer(message, failure, entry.trace))
        else:
            question.refused += 1

    def _counts(self, sent_to: Produces, entry: Entry, failure: str | None) -> bool:
        """Whether an answer is taken, by the policy of the stream that the request was sent to."""
        if sent_to.signatures == OFF:
            return True
        flaw = self._keyring.flaw(sent_to.stream, answer_domain(self.key, failure), entry)
        if flaw is None:
            return True
        count, taken = (
            self._counters.add(ANSWERS_UNVERIFIED, sent_to.stream, flaw),
            sent_to.signatures == WARN,
        )
        if is_worth_saying(count):
            _log.warning(
                "%s: an answer is %s without a valid signature (%s, %d so far)",
                sent_to.stream,
                "taken" if taken else "dropped",
                flaw,
                count,
            )
        return taken


def _after(entry: bytes) -> str:
    """The smallest id above that of an entry."""
    milliseconds, _, sequence = entry.decode().partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
