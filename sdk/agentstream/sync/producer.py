"""What comes of what an agent says, for a thread that waits."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from agentstream.sending import notifications, receipts
from agentstream.sending.notifications import Notification
from agentstream.sending.receipts import ReceiptStatus
from agentstream.sent import SentMessage
from agentstream.sync.loop import Ended, LoopThread


class SyncReceipt:
    """As `agentstream.Receipt`.

    Attributes:
        sent: the message.
        expected: the groups that were declared when it was sent.
    """

    def __init__(self, receipt: receipts.Receipt, loop: LoopThread) -> None:
        self.sent: SentMessage = receipt.sent
        self.expected: tuple[str, ...] = receipt.expected
        self._receipt = receipt
        self._loop = loop

    def __repr__(self) -> str:
        """Says which message it is of."""
        return repr(self._receipt)

    def status(self) -> ReceiptStatus:
        """As `agentstream.Receipt.status`.

        Raises:
            ConnectionLost, AccessDenied, ServerRefused: as there.
        """
        return self._loop.run(self._receipt.status)

    def wait(self, quorum: float | None = None, timeout: float = 30.0) -> ReceiptStatus:
        """As `agentstream.Receipt.wait`.

        Raises:
            QuorumMissed, ConnectionLost, AccessDenied, ServerRefused, ValueError: as there.
        """
        return self._loop.run(self._receipt.wait, quorum, timeout)


class SyncNotifications(Iterator[Notification]):
    """As `agentstream.Notifications`: an iterator that ends when the agent stops.

    Listening ends with `close`, where `with` ends, and soon after nothing refers to it any more.
    """

    def __init__(self, listening: notifications.Notifications, loop: LoopThread) -> None:
        self._notifications = listening
        self._loop = loop

    @property
    def dropped(self) -> int:
        """As `agentstream.Notifications.dropped`."""
        return self._notifications.dropped

    def __next__(self) -> Notification:
        """The next notification. In the process of its agent, it raises nothing but StopIteration."""
        try:
            return self._loop.run(self._next)
        except (StopAsyncIteration, Ended):
            if self._loop.is_here:
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Ends listening."""
        if not self._loop.has_ended:
            self._loop.complete(self._notifications.aclose)

    def __enter__(self) -> Self:
        """The notifications; ends listening at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends listening."""
        self.close()

    async def _next(self) -> Notification:
        return await anext(self._notifications)
