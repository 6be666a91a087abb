"""Originals: asks the server which signed entries are messages, and which are copies of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from agentstream.consuming.hold import RELEASABLE, Hold
from agentstream.consuming.leases import batches
from agentstream.consuming.settling import Settler
from agentstream.errors import AgentStreamError
from agentstream.identity.keyring import Verifier
from agentstream.transport.retry import FailureLog

_PAUSE_AFTER_FAILURE = 0.5


class Originals:
    """Asks together for all entries that came in one iteration of the event loop; their order stays.

    Any process of the group may have met the message in another entry: only the server knows. Meanwhile the
    leases are renewed, as of everything that is held.

    Args:
        verifier: verifies the signatures: of what has no valid one the server is not asked.
        call: sends a command over the connection for control.
        settler: hands back what nobody can tell of.
        decide: gets the entries that are still held then.
    """

    def __init__(
        self,
        verifier: Verifier,
        call: Callable[..., Awaitable[Any]],
        settler: Settler,
        decide: Callable[[Sequence[Hold]], None],
    ) -> None:
        self._verifier = verifier
        self._call = call
        self._settler = settler
        self._decide = decide
        self._waiting: list[Hold] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = FailureLog(f"look for copies on {settler.leases.calls.main.key}")

    def ask(self, hold: Hold) -> None:
        """Verifies an entry, and asks for it soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        hold.verified(self._verifier.flaw(hold.entry))
        self._waiting.append(hold)

    async def answered(self) -> None:
        """Waits until nothing is asked for."""
        while self._waiting or self._tasks:
            await asyncio.gather(*self._tasks)
            await asyncio.sleep(0)

    def _flush(self) -> None:
        holds, self._waiting = self._waiting, []
        for _, batch in batches(holds):
            task = asyncio.create_task(self._ask(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, holds: Sequence[Hold]) -> None:
        asked = [hold for hold in holds if hold.flaw is None]
        try:
            firsts = await self._firsts(asked) if asked else ()
        except AgentStreamError as error:
            self._failures.failed(error)
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            # no attempt is counted for what nobody has seen
            self._settler.release(*(hold for hold in asked if hold.state in RELEASABLE))
        else:
            for hold, first in zip(asked, firsts, strict=True):
                hold.verified(self._verifier.copy_flaw(hold.entry, first.decode()))
        # what is released, or was lost meanwhile, is not there any more
        self._decide([hold for hold in holds if hold.state in RELEASABLE])

    async def _firsts(self, asked: Sequence[Hold]) -> Sequence[bytes]:
        command = self._settler.leases.calls.originals(hold.entry for hold in asked)
        firsts: Sequence[bytes] = await self._call(*command)
        self._failures.recovered()
        return firsts
