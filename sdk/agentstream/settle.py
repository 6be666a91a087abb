"""Settling: what is done with an entry in the end, each exactly once and only while this consumer holds it.

Acknowledgements of one event-loop tick travel in one function call. A call whose reply was lost is repeated:
it is fenced by owner and delivery counter, so it cannot do anything twice.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agentstream.backoff import Pause, retry_delay, unit
from agentstream.calls import Command, GroupCalls
from agentstream.entries import Entry, State
from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream.lease import Leases, batches
from agentstream.library import DONE, GONE, TRIMMED
from agentstream.once import Once
from agentstream.refusal import group_is_gone
from agentstream.replies import Replies
from agentstream.routes import Consumes
from agentstream.wire import WireClosed

_RELEASE_PATIENCE = 2.0
_ERROR_LENGTH = 500
_log = logging.getLogger("agentstream")


class Settler:
    """Settles the entries of one consumer.

    Args:
        call: sends a command and returns its reply.
        calls: the commands of this consumer.
        leases: what is held; settled entries leave it.
        on_settled: called with each entry that is settled or handed back, whether it was still held or not.
        on_delayed: called with the delay, in seconds, of an entry that was put off.
        replies: answers requests, and tells whoever asked what became a dead letter.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        calls: GroupCalls,
        leases: Leases,
        on_settled: Callable[[Entry], None],
        on_delayed: Callable[[float], None],
        *,
        replies: Replies,
    ) -> None:
        self._call = call
        self._calls = calls
        self._leases = leases
        self._on_settled = on_settled
        self._on_delayed = on_delayed
        self.replies = replies
        self._waiting: dict[str, list[tuple[Entry, asyncio.Future[bool]]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def ack(self, entry: Entry) -> asyncio.Future[bool]:
        """Acknowledges a handled entry. The result is whether it was still held."""
        return self._with_others("acked", entry)

    def skip(self, entry: Entry) -> asyncio.Future[bool]:
        """Takes an entry off that is not for this agent. The result is whether it was still held."""
        return self._with_others("skipped", entry)

    def retry(self, entry: Entry, delay: int, reason: str, error: str) -> asyncio.Future[bool]:
        """Puts an entry off for `delay` ms. The result is whether it was still held."""
        command = self._calls.retry(entry, delay, entry.attempts, reason, error[:_ERROR_LENGTH])
        return self._alone(entry, command, delay)

    def put_off(self, entry: Entry, delay: int, reason: str, error: str) -> asyncio.Future[bool]:
        """Puts an entry off for `delay` ms that no handler got: no attempt is counted."""
        attempts = entry.next_attempt - 1
        return self._alone(entry, self._calls.retry(entry, delay, attempts, reason, error), delay)

    def give_up(self, entry: Entry, policy: Consumes, reason: str, error: str) -> asyncio.Future[bool]:
        """Makes a dead letter of an entry. The result is whether it was still held.

        In a group without dead letters it is tried again after the longest delay instead.
        """
        if not policy.dead_letters:
            return self.retry(entry, retry_delay(policy, sys.maxsize, unit()), reason, error)
        error = error[:_ERROR_LENGTH]
        entry.busy = True
        command = self._calls.dead_letter(entry, entry.attempts, reason, error)
        return self._own(self._give_up(entry, command, reason, error))

    def release(self, *entries: Entry) -> asyncio.Future[bool]:
        """Hands entries back: any consumer may have them at once, and no attempt is counted.

        What a handler has begun goes to the end of the group's retry stream; the rest stays where it is, and may
        be claimed. The result is whether all were still held.
        """
        for entry in entries:
            entry.busy = True
        return self._own(self._release(list(entries)))

    def once(self, policy: Consumes, key: str, delivery: str, ttl: float) -> Once:
        """An effect that the group must not repeat; see `Delivery.once`."""
        return Once(self._call, policy, key, delivery, ttl)

    async def drain(self) -> None:
        """Waits until everything that was begun is done."""
        while self._waiting or self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.sleep(0)

    def _with_others(self, outcome: str, entry: Entry) -> asyncio.Future[bool]:
        entry.busy = True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        waiting = self._waiting.setdefault(outcome, [])
        waiting.append((entry, future))
        if len(waiting) == 1:
            loop.call_soon(self._flush, outcome)
        return future

    def _flush(self, outcome: str) -> None:
        futures = dict(self._waiting.pop(outcome))
        for source, entries in batches(list(futures)):
            command = self._calls.settle(source, outcome, entries)
            self._own(self._settle_batch(command, {entry: futures[entry] for entry in entries}))

    async def _settle_batch(self, command: Command, futures: dict[Entry, asyncio.Future[bool]]) -> None:
        deadline = max(entry.lease_until for entry in futures)
        codes, repeated = await self._repeated(command, deadline)
        for (entry, future), code in zip(futures.items(), codes or [None] * len(futures), strict=True):
            self._done(entry)
            if not future.done():
                future.set_result(_was_held(code, repeated=repeated))

    def _alone(self, entry: Entry, command: Command, delay: int = 0) -> asyncio.Future[bool]:
        entry.busy = True
        return self._own(self._settle_one(entry, command, delay))

    async def _settle_one(self, entry: Entry, command: Command, delay: int) -> bool:
        code, repeated = await self._repeated(command, entry.lease_until)
        self._done(entry)
        if delay:
            self._on_delayed(delay / 1000)
        return _was_held(code, repeated=repeated)

    async def _give_up(self, entry: Entry, command: Command, reason: str, error: str) -> bool:
        was_held = await self._settle_one(entry, command, 0)
        if was_held:
            self._own(self.replies.gave_up(entry.body, reason, error))
        return was_held

    async def _release(self, entries: list[Entry]) -> bool:
        all_held = True
        for state in State:
            for source, batch in batches([entry for entry in entries if entry.state is state]):
                deadline = asyncio.get_running_loop().time() + _RELEASE_PATIENCE
                codes, repeated = await self._repeated(self._calls.release(source, state, batch), deadline)
                for entry, code in zip(batch, codes or [None] * len(batch), strict=True):
                    self._done(entry)
                    # after a lost reply a released entry is gone, or pending at another counter
                    all_held = all_held and code is not None and (repeated or code == DONE)
        return all_held

    async def _repeated(self, command: Command, deadline: float) -> tuple[Any, bool]:
        """Sends a command until a reply comes or the lease has run out.

        Returns its reply, None without one, and whether an earlier reply was lost.
        """
        loop = asyncio.get_running_loop()
        pause = Pause(0.05, 1.0)
        repeated = False
        while True:
            try:
                return await self._call(*command), repeated
            except AgentStreamError as error:
                delay = pause.next()
                hopeless = group_is_gone(error) or isinstance(error, WireClosed)
                if hopeless or loop.time() + delay > deadline:
                    _log.warning(
                        "an entry of %s was not settled and may be delivered again: %s", command[3], error
                    )
                    return None, repeated
                repeated = repeated or isinstance(error, ConnectionLost)
            await asyncio.sleep(delay)

    def _done(self, entry: Entry) -> None:
        self._leases.let_go(entry)
        self._on_settled(entry)

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs to its end whatever becomes of the caller."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _was_held(code: int | None, *, repeated: bool) -> bool:
    """Whether the entry was held; gone after a lost reply means that the lost one had done it."""
    if code is None:
        return False
    return code in (DONE, TRIMMED) or (repeated and code == GONE)
