"""Replies to requests: on the reply stream of the requester, or as a message to it.

A request names its reply stream, and may be forged: a reply goes to that key only if it is a reply stream of
the request's sender in this namespace. A reply to a request on a signed stream is signed with the stream's
key.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from agentstream.errors import AgentStreamError, InvalidMessage
from agentstream.identity.keyring import Keyring
from agentstream.protocol import commands
from agentstream.protocol.envelope import Message, decode
from agentstream.protocol.keys import reply_key
from agentstream.protocol.reasons import FLAWS
from agentstream.protocol.routes import Consumes
from agentstream.protocol.signatures import answer_domain
from agentstream.sending.outgoing import (
    DEFAULT_TIMEOUT,
    ROUTE_PATIENCE,
    OutgoingMessage,
    OutgoingRecord,
    record_of,
)
from agentstream.telemetry.tracing import spans
from agentstream.transport.retry import retry_until

FAILURE = "e"
"""The field of a reply that says why the request became a dead letter."""

# Bounds of the lifetime of a reply in seconds, whatever timeout the requester has.
_SHORTEST, _LONGEST = 60.0, 86_400.0
_FAILURE_PATIENCE = 5.0
# what is longer, in bytes, no requester published
_MOST_CANCELLED, _LONGEST_NOTICE = 10_000, 1_024
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies to the requests that one agent handles."""

    namespace: str
    agent: str
    call: Callable[..., Awaitable[Any]]
    send: Callable[[OutgoingRecord], Awaitable[Any]]
    keyring: Keyring
    # requests that nobody waits for any more: the newest ones, by what their requesters published
    _cancelled: dict[bytes, None] = field(default_factory=dict, init=False)

    def note_cancelled(self, notice: bytes) -> None:
        """Takes what a requester published that waits no longer; see `notice_of`."""
        if len(notice) <= _LONGEST_NOTICE:
            self._cancelled[notice] = None
        if len(self._cancelled) > _MOST_CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]

    def is_cancelled(self, request: Message) -> bool:
        """Whether the sender of a request waits no longer: it said so, or the request has expired."""
        if not self.are_awaited(request):
            return False
        is_over = request.expires_at is not None and request.expires_at <= time.time()
        return is_over or notice_of(request) in self._cancelled

    async def answer(
        self,
        request: Message,
        payload: Any,
        policy: Consumes,
        timeout: float = DEFAULT_TIMEOUT,
        patience: float = ROUTE_PATIENCE,
    ) -> None:
        """Replies to a request that a group with this policy delivered; see `Delivery.reply`."""
        answer = self._answer_to(request, payload, timeout, patience)
        if self.are_awaited(request):
            tracing = spans()
            with contextlib.nullcontext(b"") if tracing is None else tracing.answering(request) as carried:
                await self._put(request, answer, policy, timeout, trace=carried)
        else:
            await self.send(answer)

    def are_awaited(self, request: Message) -> bool:
        """Whether the sender waits for the answer, in `Agent.request`."""
        return is_reply_key(request.reply_to, self.namespace, request.sender)

    async def gave_up(self, body: bytes | None, policy: Consumes, reason: str, error: str) -> None:
        """Tells the requester that its request became a dead letter; other messages have none."""
        if body is None or b'"reply_to"' not in body:
            return
        with contextlib.suppress(InvalidMessage, AgentStreamError):
            request = decode(body)
            # a group with deliverAll also gets the requests of other agents
            if request.to == self.agent and self.are_awaited(request):
                answer = self._answer_to(request, {"error": error}, _FAILURE_PATIENCE)
                # a forged request must not yield a signed reply
                signed_as = None if reason in FLAWS else policy
                await self._put(request, answer, signed_as, _FAILURE_PATIENCE, failure=reason)

    def _answer_to(
        self, request: Message, payload: Any, timeout: float, patience: float = ROUTE_PATIENCE
    ) -> OutgoingRecord:
        fields = {"to": request.sender, "payload": payload, "correlation_id": request.id}
        one = OutgoingMessage(type="task_result", **fields)
        return record_of(self.agent, one, timeout, patience=patience)

    async def _put(
        self,
        request: Message,
        answer: OutgoingRecord,
        policy: Consumes | None,
        timeout: float,
        *,
        failure: str | None = None,
        trace: bytes = b"",
    ) -> None:
        """Adds a reply to its stream, signed by the policy. It may be added twice: the first one counts."""
        assert request.reply_to is not None  # noqa: S101 - it is a reply stream
        data, domain = answer.data, answer_domain(request.reply_to, failure)
        more: tuple[str | bytes, ...] = () if failure is None else (FAILURE, failure)
        if trace:
            more += ("t", trace)
        awaited = (request.expires_at or 0) - time.time() + _SHORTEST
        lifetime = round(min(max(awaited, _SHORTEST), _LONGEST) * 1000)
        command = commands.reply(request.reply_to, lifetime, ("m", data, *more))

        async def put() -> None:
            # the Secret may still get the key
            signature = () if policy is None else self.keyring.signature(policy, data, to=domain)
            await self.call(*command, *signature)

        await retry_until(put, timeout)


def notice_of(request: Message) -> bytes:
    """What is published when nobody waits for a request any more; the token of the key proves the sender."""
    return f"{request.id} {request.reply_to}".encode()


def is_reply_key(key: str | None, namespace: str, agent: str) -> bool:
    """Whether a key is a reply stream of an agent."""
    head = reply_key(namespace, agent, "")
    return key is not None and key.startswith(head) and _TOKEN.fullmatch(key, len(head)) is not None
