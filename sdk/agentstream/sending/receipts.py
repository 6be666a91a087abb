"""Receipts of broadcasts: which groups have acknowledged a message."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

import msgspec

from agentstream.errors import AgentStreamError, NoRoute, QuorumMissed, WireClosed
from agentstream.protocol import commands
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Produces
from agentstream.routing.directory import Directory
from agentstream.sent import SentMessage
from agentstream.transport.retry import Backoff, retry_until

_FIRST_LOOK, _SELDOM = 0.004, 0.25
_ROUTE_PATIENCE = 10.0
_FRESH = 1.0
"""Seconds for which the groups of a broadcast stream are cached."""


class ReceiptState(StrEnum):
    """The state of a broadcast in one group."""

    ACKNOWLEDGED = "acknowledged"
    PENDING = "pending"
    """Not delivered yet, or with a handler."""
    RETRYING = "retrying"
    """An attempt failed, and another one will follow."""
    DEAD = "dead"
    """The message is a dead letter of the group."""
    MISSING = "missing"
    """The group does not exist on the server."""


class ReceiptStatus(msgspec.Struct, frozen=True):
    """The state of a broadcast in all groups.

    Attributes:
        groups: the state in each expected group, by its name.
    """

    groups: dict[str, ReceiptState]

    @property
    def acknowledged(self) -> tuple[str, ...]:
        """The groups that have acknowledged the message."""
        return self._in(ReceiptState.ACKNOWLEDGED)

    @property
    def dead(self) -> tuple[str, ...]:
        """The groups in which the message is a dead letter."""
        return self._in(ReceiptState.DEAD)

    @property
    def outstanding(self) -> tuple[str, ...]:
        """The groups that may still acknowledge the message."""
        return self._in(ReceiptState.PENDING, ReceiptState.RETRYING, ReceiptState.MISSING)

    def _in(self, *states: ReceiptState) -> tuple[str, ...]:
        return tuple(group for group, state in self.groups.items() if state in states)


class Receipt:
    """Tells which groups have acknowledged a broadcast.

    A group has acknowledged a message once a handler ended well. The state is read from what groups keep
    anyway, for as long as the stream's `retention.minAge`.

    Attributes:
        sent: the message.
        expected: the groups that were declared when it was sent.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]], sent: SentMessage, produces: Produces) -> None:
        self.sent = sent
        self.expected: tuple[str, ...] = () if sent.shed else produces.groups
        self._call = call
        self._command = commands.receipt(StreamKeys(produces.key), sent.entry, self.expected)

    def __repr__(self) -> str:
        """Names the message."""
        return f"<Receipt of {self.sent.id} on {self.sent.stream}, expecting {len(self.expected)} groups>"

    async def status(self) -> ReceiptStatus:
        """Reads the state of the message in each expected group, in one round trip.

        Raises:
            ConnectionLost: the server cannot be reached.
            AccessDenied: the agent may not produce to the stream any more.
            ServerRefused: the server refuses for another reason.
        """
        states = await self._call(*self._command) if self.expected else ()
        return ReceiptStatus(
            {group: ReceiptState(state.decode()) for group, state in zip(self.expected, states, strict=True)}
        )

    async def wait(self, quorum: float | None = None, timeout: float = 30.0) -> ReceiptStatus:
        """Waits until enough groups have acknowledged the message. Returns its state then.

        Args:
            quorum: how many groups are enough: a whole number of them, or a share between 0 and 1, rounded up
                to whole groups; all expected ones if None.
            timeout: seconds to wait.

        Raises:
            QuorumMissed: too few groups acknowledged the message until the deadline, or can still do so.
            ConnectionLost, AccessDenied, ServerRefused: the server did not tell the state until the deadline.
            ValueError: the quorum is neither a positive whole number nor a share.
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
    """Returns how many of the expected groups make a quorum. Raises ValueError for what is none."""
    if quorum is None:
        return expected
    if isinstance(quorum, int) and not isinstance(quorum, bool) and quorum > 0:
        return quorum
    if isinstance(quorum, float) and 0 < quorum < 1:
        return math.ceil(quorum * expected)
    raise ValueError(f"a quorum is a number of groups, or a share between 0 and 1, not {quorum!r}")


async def broadcast_stream(directory: Directory, stream: str | None, timeout: float) -> Produces:
    """Finds the broadcast stream that an agent produces to, with the groups that are declared now."""
    patience = min(_ROUTE_PATIENCE, timeout)
    directory.forget_older(_FRESH)
    produces = await retry_until(lambda: directory.target(BROADCAST, stream, patience), timeout)
    if not produces.broadcast:
        raise NoRoute(f"{stream} is no broadcast stream: its groups get what send_message(stream=…) sends")
    return produces


def _missed(sent: SentMessage, status: ReceiptStatus, needed: int) -> QuorumMissed:
    others = ", ".join(
        f"{group} {state}" for group, state in status.groups.items() if state is not ReceiptState.ACKNOWLEDGED
    )
    acknowledged = len(status.acknowledged)
    return QuorumMissed(
        f"{acknowledged} of the {needed} groups that are needed acknowledged {sent.entry} of {sent.stream}"
        f" ({others or 'no more are declared'})",
        acknowledged=status.acknowledged,
        outstanding=status.outstanding,
        dead=status.dead,
    )
