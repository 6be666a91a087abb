"""Receipts of broadcasts: which groups have acknowledged a message."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from agentstream.errors import AgentStreamError, NoRoute, QuorumMissed, check_timeout
from agentstream.protocol import commands
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Produces
from agentstream.routing.directory import Directory
from agentstream.sent import SentMessage
from agentstream.transport.error_replies import passes
from agentstream.transport.retry import retry_until

_FIRST_LOOK, _SELDOM = 0.004, 0.25
"""Seconds between the looks at a receipt: they double from the first to the second."""
_TOGETHER = 500
"""The most states that one call reads: a millisecond or two, during which the server does nothing else."""
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
    """The group does not exist on the server, or the message was lost before the group acknowledged it."""


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

    A group has acknowledged a message once a handler ended well. The state is known for as long as the
    stream's `retention.minAge`.

    Attributes:
        sent: the message.
        expected: the groups that were declared when it was sent.
    """

    def __init__(self, poller: ReceiptPoller, sent: SentMessage, produces: Produces) -> None:
        self.sent = sent
        self.expected: tuple[str, ...] = () if sent.shed else produces.groups
        self._poller = poller
        self._asked = _Asked(produces.key, self.expected)

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
        (status,) = await self._poller.read(self._asked, (self.sent.entry,))
        return status

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
        check_timeout(timeout)
        needed = groups_needed(quorum, len(self.expected))
        return await self._poller.wait(self._asked, self.sent, needed, timeout)


class _Asked(NamedTuple):
    """Groups of a stream that are asked about an entry."""

    key: str
    groups: tuple[str, ...]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A task that waits for a quorum; times are seconds of the event loop's clock."""

    asked: _Asked
    sent: SentMessage
    needed: int
    deadline: float
    outcome: asyncio.Future[ReceiptStatus]
    looked: float = -math.inf
    pause: float = _FIRST_LOOK

    @property
    def due(self) -> float:
        """When to look again at the latest."""
        return min(self.looked + self.pause, self.deadline)

    def is_worth_a_look(self, now: float) -> bool:
        """Whether half of the pause is over: then another one's look may serve it, too."""
        return not self.outcome.done() and now >= min(self.looked + self.pause / 2, self.deadline)

    def saw(self, found: ReceiptStatus | Exception, began: float, ended: float) -> None:
        """Takes what a look found that began then: waits on, or has an outcome."""
        over = began >= self.deadline
        self.looked, self.pause = ended, min(2 * self.pause, _SELDOM)
        if self.outcome.done():
            return
        if isinstance(found, Exception):
            if over or not (isinstance(found, AgentStreamError) and passes(found)):
                self._failed(found)
            return
        acknowledged = len(found.acknowledged)
        if acknowledged >= self.needed:
            self.outcome.set_result(found)
        elif over or acknowledged + len(found.outstanding) < self.needed:
            self._failed(_missed(self.sent, found, self.needed))

    def _failed(self, error: Exception) -> None:
        self.outcome.set_exception(error)
        # a task that is cancelled at this moment does not take the error
        self.outcome.exception()


class ReceiptPoller:
    """Reads the state of one agent's broadcasts: of all that tasks wait for, one call at a time.

    Args:
        call: sends a command to the server.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._waiters: dict[_Waiter, None] = {}
        self._came = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def read(self, asked: _Asked, entries: Sequence[str]) -> list[ReceiptStatus]:
        """Reads the state of entries of one stream in the same groups; see `Receipt.status`."""
        groups = asked.groups
        if not groups:
            return [ReceiptStatus({}) for _ in entries]
        states = await self._call(*commands.receipt(StreamKeys(asked.key), groups, entries))
        found = [ReceiptState(state.decode()) for state in states]
        rows = zip(*[iter(found)] * len(groups), strict=True)
        return [ReceiptStatus(dict(zip(groups, row, strict=True))) for row in rows]

    async def wait(self, asked: _Asked, sent: SentMessage, needed: int, timeout: float) -> ReceiptStatus:
        """Waits until so many groups have acknowledged an entry; see `Receipt.wait`."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(asked, sent, needed, loop.time() + timeout, loop.create_future())
        self._waiters[waiter] = None
        self._came.set()
        if len(self._waiters) == 1:
            self._polling = asyncio.create_task(self._poll(), name="poll receipts")
        try:
            return await waiter.outcome
        finally:
            del self._waiters[waiter]
            if not self._waiters and self._polling is not None:
                self._polling.cancel()

    async def _poll(self) -> None:
        """Looks at what is due, and along with it at what soon will be, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            due = min((w.due for w in self._waiters if not w.outcome.done()), default=math.inf)
            if due > loop.time():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(None if due == math.inf else due):
                        await self._came.wait()
                continue
            together: dict[_Asked, list[_Waiter]] = {}
            for waiter in self._waiters:
                if waiter.is_worth_a_look(loop.time()):
                    together.setdefault(waiter.asked, []).append(waiter)
            for asked, waiters in together.items():
                size = max(1, _TOGETHER // max(1, len(asked.groups)))
                for first in range(0, len(waiters), size):
                    await self._look(asked, waiters[first : first + size])

    async def _look(self, asked: _Asked, waiters: Sequence[_Waiter]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        found: Sequence[ReceiptStatus | Exception]
        try:
            found = await self.read(asked, [waiter.sent.entry for waiter in waiters])
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            found = [error] * len(waiters)
        for waiter, one in zip(waiters, found, strict=True):
            waiter.saw(one, began, clock())


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
