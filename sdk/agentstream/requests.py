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

from agentstream.backoff import Pause
from agentstream.errors import AgentStreamError, ConnectionLost, InvalidMessage, NoReply, RequestFailed
from agentstream.message import Message, decode
from agentstream.replies import FAILURE
from agentstream.trouble import Trouble
from agentstream.wire import Wire

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


class Requests:
    """The requests of one process that are not answered yet.

    Args:
        key: the stream for answers.
        wire: the connection to read it with; nobody else uses it.
    """

    def __init__(self, key: str, wire: Wire) -> None:
        self.key = key
        self._wire = wire
        self._waiting: dict[str, asyncio.Future[_Answer]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._trouble = Trouble("read answers to requests")

    async def ask(
        self,
        request: Message,
        send: Callable[[], Awaitable[Any]],
        timeout: float,  # noqa: ASYNC109 - at the deadline it says that nobody answered
    ) -> Message:
        """Sends a request and waits for its answer; see `Agent.request`.

        Args:
            request: the message; answers to it go to this stream.
            send: sends it.
            timeout: for how many seconds to wait.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        answered: asyncio.Future[_Answer] = loop.create_future()
        self._waiting[request.id] = answered
        self._listen()
        try:
            try:
                await send()
            except AgentStreamError:
                # an answer says that it was sent, whatever the sender was told
                if not answered.done():
                    raise
            async with asyncio.timeout_at(deadline):
                answer = await answered
        except TimeoutError:
            raise NoReply(f"{request.to} did not answer the request {request.id} in {timeout:g} s") from None
        finally:
            del self._waiting[request.id]
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
        for answered in self._waiting.values():
            if not answered.done():
                answered.set_exception(ConnectionLost("the agent was closed before the answer came"))
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._wire.close()
        with contextlib.suppress(AgentStreamError, TimeoutError):
            async with asyncio.timeout(_CLOSING_PATIENCE):
                await unlink("UNLINK", self.key)

    def _listen(self) -> None:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="read answers")

    async def _read(self) -> None:
        """Hands out answers as long as somebody waits for one."""
        pause = Pause(0.05, 1.0)
        while self._waiting:
            try:
                read = ("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK, "STREAMS", self.key, "0")
                for _, entries in await self._wire.call(*read) or ():
                    for _, fields in entries:
                        self._came(dict(zip(fields[::2], fields[1::2], strict=True)))
                    await self._wire.call("XTRIM", self.key, "MINID", _after(entries[-1][0]))
            except AgentStreamError as error:
                self._trouble.met(error)
                await asyncio.sleep(pause.next())
            else:
                pause.reset()
                self._trouble.over()

    def _came(self, fields: dict[bytes, bytes]) -> None:
        try:
            message = decode(fields.get(b"m", b""))
        except InvalidMessage as error:
            _log.warning("somebody added what is no message to the answers: %s", error)
            return
        answered = self._waiting.get(message.correlation_id or "")
        if answered is None or answered.done():
            _log.debug("nobody waits for the answer %s of %s", message.id, message.sender)
            return
        failure = fields.get(FAILURE.encode())
        answered.set_result(_Answer(message, None if failure is None else failure.decode(errors="replace")))


def _after(entry: bytes) -> str:
    """The smallest id above that of an entry."""
    milliseconds, _, sequence = entry.decode().partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
