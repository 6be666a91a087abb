"""Receipts of broadcasts: which groups have acknowledged a message, and waiting until enough of them have."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

import msgspec

from agentstream.errors import AgentStreamError, NoRoute, QuorumMissed, WireClosed
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Produces
from agentstream.routing.directory import Directory
from agentstream.sent import SentMessage
from agentstream.transport.retry import Backoff, retry_until

_FIRST_LOOK, _SELDOM = 0.004, 0.25
_ROUTE_PATIENCE = 10.0
_FRESH = 1.0
"""Seconds for which it may be unknown here that a group was declared, or is not any more."""


class ReceiptState(StrEnum):
    """What has become of a broadcast in one group."""

    ACKNOWLEDGED = "acknowledged"
    PENDING = "pending"
    """Not delivered yet, or in a handler's hands."""
    RETRYING = "retrying"
    """An attempt failed, and another one is to come."""
    DEAD = "dead"
    """The group gave it up: it is a dead letter."""
    MISSING = "missing"
    """There is no such group on the server."""


class ReceiptStatus(msgspec.Struct, frozen=True):
    """What has become of a broadcast at one moment.

    Attributes:
        groups: how the message stands in each expected group.
    """

    groups: dict[str, ReceiptState]

    @property
    def acknowledged(self) -> tuple[str, ...]:
        """The groups that have acknowledged it."""
        return tuple(
            group for group, standing in self.groups.items() if standing is ReceiptState.ACKNOWLEDGED
        )

    @property
    def dead(self) -> tuple[str, ...]:
        """The groups that gave it up."""
        return tuple(group for group, standing in self.groups.items() if standing is ReceiptState.DEAD)

    @property
    def outstanding(self) -> tuple[str, ...]:
        """The groups that may still acknowledge it."""
        settled = (ReceiptState.ACKNOWLEDGED, ReceiptState.DEAD)
        return tuple(group for group, standing in self.groups.items() if standing not in settled)


class Receipt:
    """Who is expected to acknowledge a broadcast, and who has.

    A group has acknowledged a message once it delivered it and a handler ended well. Nothing is written for
    that: whoever asks is told what the groups' own state says. It can be asked for as long as the stream's
    `retention.minAge`.

    Attributes:
        sent: the message.
        expected: the groups that were declared when it was sent.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]], sent: SentMessage, produces: Produces) -> None:
        self.sent = sent
        self.expected: tuple[str, ...] = () if sent.shed else produces.groups
        self._call = call
        keys = StreamKeys(produces.key)
        parked = ((group, keys.parked(group)) for group in self.expected)
        self._command = ("FCALL_RO", "as1_receipt", 1, keys.stream, sent.entry, *sum(parked, ()))

    def __repr__(self) -> str:
        """Says which message it is of."""
        return f"<Receipt of {self.sent.id} on {self.sent.stream}, expecting {len(self.expected)} groups>"

    async def status(self) -> ReceiptStatus:
        """How the message stands in each expected group, in one round trip.

        Raises:
            ConnectionLost: the server cannot be reached.
            AccessDenied: the agent may not produce to the stream any more.
            ServerRefused: the server refuses for another reason.
        """
        standings = await self._call(*self._command) if self.expected else ()
        return ReceiptStatus(
            {
                group: ReceiptState(standing.decode())
                for group, standing in zip(self.expected, standings, strict=True)
            }
        )

    async def wait(
        self,
        quorum: float | None = None,
        timeout: float = 30.0,
    ) -> ReceiptStatus:
        """Waits until enough groups have acknowledged the message. Returns how it stands then.

        Args:
            quorum: how many groups are enough: a whole number of them, or a share between 0 and 1, rounded up
                to whole groups; all expected ones if None.
            timeout: for how many seconds to wait.

        Raises:
            QuorumMissed: at the deadline too few have, or so many gave it up that too few can.
            ConnectionLost, AccessDenied, ServerRefused: until the deadline, the server could not be asked.
            ValueError: the quorum is neither.
        """
        needed = groups_needed(quorum, len(self.expected))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        backoff = Backoff(_FIRST_LOOK, _SELDOM)
        while True:
            over = loop.time() >= deadline
            try:
                status = await self.status()
            except WireClosed:
                raise
            except AgentStreamError:
                if over:
                    raise
            else:
                acknowledged = len(status.acknowledged)
                if acknowledged >= needed:
                    return status
                if over or acknowledged + len(status.outstanding) < needed:
                    raise _missed(self.sent, status, needed)
            await asyncio.sleep(min(backoff.next(), max(deadline - loop.time(), 0)))


def groups_needed(quorum: float | None, expected: int) -> int:
    """How many groups make a quorum.

    Raises:
        ValueError: the quorum is neither a positive whole number nor a share between 0 and 1.
    """
    if quorum is None:
        return expected
    if isinstance(quorum, int) and not isinstance(quorum, bool) and quorum > 0:
        return quorum
    if isinstance(quorum, float) and 0 < quorum < 1:
        return math.ceil(quorum * expected)
    raise ValueError(f"a quorum is a number of groups, or a share between 0 and 1, not {quorum!r}")


async def broadcast_stream(
    directory: Directory,
    stream: str | None,
    timeout: float,
) -> Produces:
    """The broadcast stream that an agent produces to, with the groups that are declared now.

    Raises:
        NoRoute: there is none, or more than one.
        ConnectionLost, AccessDenied, ServerRefused: until the deadline, the routes could not be read.
    """
    patience = min(_ROUTE_PATIENCE, timeout)
    directory.forget_older(_FRESH)
    produces = await retry_until(lambda: directory.target(BROADCAST, stream, patience), timeout)
    if not produces.broadcast:
        raise NoRoute(f"{stream} is no broadcast stream: its groups get what send_message(stream=…) sends")
    return produces


def _missed(sent: SentMessage, status: ReceiptStatus, needed: int) -> QuorumMissed:
    others = ", ".join(
        f"{group} {standing}"
        for group, standing in status.groups.items()
        if standing is not ReceiptState.ACKNOWLEDGED
    )
    acknowledged = len(status.acknowledged)
    return QuorumMissed(
        f"{acknowledged} of the {needed} groups that are needed acknowledged {sent.entry} of {sent.stream}"
        f" ({others or 'no more are declared'})",
        acknowledged=status.acknowledged,
        outstanding=status.outstanding,
        dead=status.dead,
    )
