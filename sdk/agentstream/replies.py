"""Answers to requests: to the reply stream of whoever asked, or as a message to it.

Where an answer goes is said by the request, which anybody may have written. So a key is only written to if it
is a reply stream of the request's sender in this namespace.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from agentstream.attempts import repeated
from agentstream.errors import AgentStreamError, InvalidMessage
from agentstream.keys import reply_key
from agentstream.message import Message, decode, encode
from agentstream.payloads import payload_of, version_of
from agentstream.tracing import spans

FAILURE = "e"
"""The field of an answer that says why a request became a dead letter."""

# Seconds for which an answer is kept, however short or long whoever asked said that it would wait.
_SHORTEST, _LONGEST = 60.0, 86_400.0
_FAILURE_PATIENCE = 5.0
_TOKEN = re.compile(r"[0-9a-f]{32}")


class Replies:
    """Answers the requests that one agent handles.

    Args:
        namespace: the agent's namespace.
        agent: its name.
        call: sends a command and returns its reply.
        send: sends a message to the agent that it is addressed to, in so many seconds.
    """

    def __init__(
        self,
        namespace: str,
        agent: str,
        call: Callable[..., Awaitable[Any]],
        send: Callable[[Message, float], Awaitable[Any]],
    ) -> None:
        self._namespace = namespace
        self._agent = agent
        self._call = call
        self._send = send

    async def answer(
        self,
        request: Message,
        payload: Any,
        timeout: float,  # noqa: ASYNC109 - the deadline decides what is repeated
    ) -> None:
        """Answers a request; see `Delivery.reply`."""
        answer = self._answer_to(request, payload)
        if is_reply_key(request.reply_to, self._namespace, request.sender):
            answering = self._put(request, answer, timeout)
            tracing = spans()
            await (answering if tracing is None else tracing.answered(request, answering))
        else:
            await self._send(answer, timeout)

    async def gave_up(self, body: bytes | None, reason: str, error: str) -> None:
        """Tells whoever asked that its request became a dead letter, if it can be told soon.

        Args:
            body: the request, or any other message.
            reason: why.
            error: what went wrong, in words.
        """
        if body is None or b'"reply_to"' not in body:
            return
        with contextlib.suppress(InvalidMessage, AgentStreamError):
            request = decode(body)
            # others who read along are not whom it was for
            if request.to == self._agent and is_reply_key(request.reply_to, self._namespace, request.sender):
                answer = self._answer_to(request, {"error": error})
                await self._put(request, answer, _FAILURE_PATIENCE, FAILURE, reason)

    def _answer_to(self, request: Message, payload: Any) -> Message:
        return Message(
            v=1,
            id=str(uuid.uuid4()),
            sender=self._agent,
            to=request.sender,
            type="task_result",
            payload=payload_of(payload),
            schema_version=version_of(payload),
            timestamp=time.time(),
            correlation_id=request.id,
        )

    async def _put(
        self,
        request: Message,
        answer: Message,
        timeout: float,  # noqa: ASYNC109 - as above
        *more: str,
    ) -> None:
        """May be repeated: whoever asked takes the first of several answers."""
        data = encode(answer)
        awaited = (request.expires_at or 0) - time.time() + _SHORTEST
        lifetime = round(min(max(awaited, _SHORTEST), _LONGEST) * 1000)
        command = ("FCALL", "as1_reply", 1, request.reply_to, lifetime, "m", data, *more)
        await repeated(lambda: self._call(*command), timeout)


def is_reply_key(key: str | None, namespace: str, agent: str) -> bool:
    """Whether a key is a reply stream of an agent."""
    head = reply_key(namespace, agent, "")
    return key is not None and key.startswith(head) and _TOKEN.fullmatch(key, len(head)) is not None
