"""Watches whether the server answers, and whether it is still the same process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

from agentstream.errors import AccessDenied, AgentStreamError, ConnectionLost
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.busy import is_busy
from agentstream_operator.plan.retention import NO_EVICTION
from agentstream_operator.reconcile.queue import Priority, WorkQueue
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)

_FIRST_RETRY, _LONGEST_RETRY = 0.1, 2.0


@dataclass(slots=True)
class ServerWatch:
    """Probes the server, and runs the steps of other loops only while it answers."""

    state: State
    broker: Broker
    queue: WorkQueue[ResourceKey]
    _doubt: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _unkillable: tuple[str, tuple[str, ...]] | None = field(default=None, init=False)

    def probe_now(self) -> None:
        """Probes the server at once, as after a broken connection."""
        self._doubt.set()

    async def watch(self) -> None:
        """Probes the server until cancelled."""
        delay, options = _FIRST_RETRY, self.state.options
        while True:
            doubted = self._doubt.is_set()
            self._doubt.clear()
            try:
                async with asyncio.timeout(options.server_timeout):
                    server = await self.broker.server()
            except (AgentStreamError, TimeoutError) as error:
                if is_busy(error) and await self._end_long_function():
                    continue
                self._lost(str(error) or f"the server did not answer within {options.server_timeout:g} s")
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY)
            else:
                delay = _FIRST_RETRY
                eviction = None if server.eviction_policy == NO_EVICTION else server.eviction_policy
                self._found(server.run_id, eviction, doubted=doubted)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(options.loops.measure):
                        await self._doubt.wait()

    async def guard(self, loop: Loop, step: Coroutine[None, None, None]) -> None:
        """Runs a round of a loop if the server answers; notes its failure, so that the loop goes on."""
        if self.state.backend.outage is not None:
            step.close()
            self.state.failures.completed(loop)
            return
        try:
            await step
        except Exception as error:  # noqa: BLE001 - the loop goes on
            self.state.failures.not_completed(loop, error)
            self.note_failure(loop, loop, error)
        else:
            self.state.failures.fine(loop, loop)
            self.state.failures.completed(loop)

    def note_failure(self, loop: Loop, about: object, error: BaseException) -> bool:
        """Probes the server after a broken connection; notes any other error. Returns whether that is new."""
        if isinstance(error, ConnectionLost | AccessDenied):
            self.probe_now()
            return False
        return self.state.failures.failed(loop, about, error)

    @staticmethod
    def raise_if_all(found: Sequence[object]) -> None:
        """Raises an error of the server, if every one of some results is one."""
        errors = [each for each in found if isinstance(each, ConnectionLost | AccessDenied)]
        if errors and len(errors) == len(found):
            raise errors[0]

    def check_all(self, priority: Priority) -> None:
        """Drops all observations and queues every key."""
        for key in self.state.resources.streams:
            self.state.memory.invalidate(key)
        self.state.access.listed.clear()
        self.state.access.due.set()
        self.queue.add_all(tuple(self.state.resources.keys()), priority)

    async def _end_long_function(self) -> bool:
        """Ends what keeps the server busy for everybody, and says whose it was. Returns whether it did."""
        try:
            async with asyncio.timeout(self.state.options.server_timeout):
                found = await self.broker.end_long_function()
        except (AgentStreamError, TimeoutError):
            return False
        if found is None:
            return False
        if found.ended:
            _log.warning("%s", found)
        elif self._unkillable != (found.name, found.keys):
            _log.error("%s", found)
        self._unkillable = None if found.ended else (found.name, found.keys)
        return found.ended

    def _lost(self, outage: str) -> None:
        if self.state.backend.outage is None:
            _log.warning("server unreachable: %s", outage)
            self.state.backend.outage = outage
            self.state.access.listed.clear()
            self.queue.add_all(tuple(self.state.resources.keys()), Priority.EVENT)

    def _found(self, run_id: str, eviction: str | None, *, doubted: bool) -> None:
        backend = self.state.backend
        again = backend.outage is not None or doubted or backend.run_id not in (None, run_id)
        backend.outage, backend.run_id = None, run_id
        if backend.eviction != eviction:
            backend.eviction = eviction
            self.queue.add_all(tuple(self.state.resources.streams), Priority.EVENT)
        if again:
            _log.info("server reachable again: checking every resource")
            self.check_all(Priority.EVENT)
