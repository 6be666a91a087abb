"""The thread that renews leases, with a connection of its own: what blocks the event loop loses no lease.

Event loop and thread share little. The loop says which groups there are, and wakes the thread up when an
entry is held again. The thread looks at a copy of the holds, extends their leases, and hands lost holds over
to the loop.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from agentstream.consuming.hold import COUNTING, Hold
from agentstream.consuming.leases import Leases, batches
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.protocol.commands import DONE, Command
from agentstream.transport.blocking import BlockingConnection
from agentstream.transport.endpoint import Endpoint
from agentstream.transport.error_replies import group_is_gone
from agentstream.transport.retry import FailureLog

_PER_LEASE, _PER_LEASE_IN_TROUBLE = 3, 10
_SHORTEST_TIMEOUT, _LONGEST_TIMEOUT = 0.5, 5.0
_PATIENCE_WITH_THE_THREAD = 0.2
_PAUSE_AFTER_A_MISTAKE = 1.0
_log = logging.getLogger("agentstream")


class Renewal:
    """Renews the leases of one agent, from the first hold to the end of the agent.

    Calls `endpoint` at every connect, so that changed credentials are taken up.
    """

    def __init__(self, endpoint: Callable[[], Endpoint], name: str) -> None:
        self._endpoint = endpoint
        self._name = name
        self._groups: tuple[Leases, ...] = ()
        self._thread: RenewalThread | None = None
        self._closed = False

    def add(self, leases: Leases) -> None:
        """Starts renewing the leases of a group."""
        self._groups = (*self._groups, leases)

    def remove(self, leases: Leases) -> None:
        """Stops renewing the leases of a group."""
        self._groups = tuple(group for group in self._groups if group is not leases)

    def wake(self) -> None:
        """Looks again, as the interval of renewals has changed."""
        if not self._closed:
            self._running().wake()

    def first_acquired(self, leases: Leases) -> None:
        """Wakes the thread up, unless it watches the group anyway."""
        if not self._closed:
            thread = self._running()
            if leases not in thread.watched:
                thread.wake()

    def _running(self) -> RenewalThread:
        thread = self._thread
        # a process that was forked off has no thread, and must not touch the connection of its parent
        if thread is None or thread.process != os.getpid():
            thread = self._thread = RenewalThread(self._endpoint, self._name, lambda: self._groups)
            thread.start()
        return thread

    def close(self) -> None:
        """Ends the thread; no lease is renewed any more."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None and thread.process == os.getpid():
            thread.end()
            # one that is about to connect to a host that does not answer ends later, by itself
            thread.join(_PATIENCE_WITH_THE_THREAD)


class RenewalThread(threading.Thread):
    """The thread that renews, with a connection that only it uses.

    It runs in the process with the id `process`, and looks again by itself at groups in `watched`.
    """

    def __init__(
        self, endpoint: Callable[[], Endpoint], name: str, groups: Callable[[], tuple[Leases, ...]]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.process: int = os.getpid()
        self._endpoint = endpoint
        self._groups = groups
        self._connection: BlockingConnection | None = None
        self._timeout = _LONGEST_TIMEOUT
        self._due: dict[Leases, float] = {}
        self._failures = FailureLog("renew leases")
        self._changed = threading.Condition()
        self.watched: tuple[Leases, ...] = ()
        self._woken = False
        self._ended = False

    def wake(self) -> None:
        """Looks again at once."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def end(self) -> None:
        """Ends at once, even while it waits for the server."""
        with self._changed:
            self._ended = True
            self._changed.notify()
            if self._connection is not None:
                self._connection.interrupt()

    def run(self) -> None:
        """Renews until it is ended."""
        while not self._ended:
            try:
                backoff = self._round()
            except Exception:  # noqa: BLE001 - a mistake in this package must not cost leases
                _log.exception("renewing leases failed")
                backoff = _PAUSE_AFTER_A_MISTAKE
            with self._changed:
                if not self._ended and not self._woken:
                    self._changed.wait(backoff)
                self._woken = False
        self._disconnect()

    def _round(self) -> float | None:
        """Renews the leases that are due. Returns seconds until the next are; None if no entry is held."""
        # before looking: a hold that is acquired meanwhile wakes the thread up
        self.watched = ()
        self.watched = groups = tuple(leases for leases in self._groups() if len(leases))
        self._timeout = min((leases.lease / _PER_LEASE for leases in groups), default=_LONGEST_TIMEOUT)
        now = time.monotonic()
        due = {leases: now + leases.lease / _PER_LEASE for leases in groups}
        for leases in groups:
            if self._due.get(leases, due[leases]) > now:
                due[leases] = min(self._due.get(leases, due[leases]), due[leases])
            elif not self._renew(leases):
                due[leases] = now + leases.lease / _PER_LEASE_IN_TROUBLE
        self._due = due
        return max(min(due.values()) - time.monotonic(), 0) if due else None

    def _renew(self, leases: Leases) -> bool:
        """Renews the holds of one group. Returns whether the server answered."""
        now = time.monotonic()
        # one that is being counted would be taken for lost; one that is being settled is renewed, too: the
        # command may get lost, and a blocked loop cannot repeat it
        due = [hold for hold in leases.held() if hold.state is not COUNTING and now < hold.renew_until]
        for source, holds in batches(due):
            held = [(hold, hold.counter) for hold in holds]
            asked = time.monotonic()
            try:
                codes = self._call(leases.renewal_of(source, holds))
            except (AgentStreamError, OSError) as error:
                if not (isinstance(error, AgentStreamError) and group_is_gone(error)):
                    if not self._ended:
                        self._failures.failed(error)
                    return False
                codes = [None] * len(holds)
            self._failures.recovered()
            self._note(leases, held, codes, asked)
        return True

    @staticmethod
    def _note(leases: Leases, held: list[tuple[Hold, int]], codes: list[int | None], asked: float) -> None:
        for (hold, _), code in zip(held, codes, strict=True):
            if code == DONE:
                hold.renew(asked + leases.lease)
        lost = [one for one, code in zip(held, codes, strict=True) if code != DONE]
        if lost:
            leases.expire_soon(lost)

    def _call(self, command: Command) -> list[int | None]:
        """Sends a command; once more, if the connection turns out to have broken since the last one."""
        while True:
            known = self._connection
            connection = known or self._connect()
            try:
                return connection.call(*command)  # type: ignore[no-any-return]
            except ConnectionLost:
                self._disconnect()
                if known is None or self._ended:
                    raise

    def _connect(self) -> BlockingConnection:
        timeout = min(max(self._timeout, _SHORTEST_TIMEOUT), _LONGEST_TIMEOUT)
        connection = BlockingConnection(self._endpoint(), self.name, timeout)
        with self._changed:
            self._connection = connection
            if self._ended:
                connection.interrupt()
        try:
            connection.greet()
        except BaseException:
            self._disconnect()
            raise
        return connection

    def _disconnect(self) -> None:
        with self._changed:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
