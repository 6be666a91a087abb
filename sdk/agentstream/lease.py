"""What this process holds of one group, and the renewal of its leases.

Whatever is buffered or runs is renewed alike, three times per lease, so that other consumers' sweeps find
only what nobody looks after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from agentstream.calls import GroupCalls
from agentstream.entries import Entry, Source
from agentstream.errors import AgentStreamError
from agentstream.library import DONE
from agentstream.refusal import group_is_gone

_BATCH = 500
_log = logging.getLogger("agentstream")


def batches(entries: list[Entry]) -> Iterator[tuple[Source, list[Entry]]]:
    """Entries by the stream they are on, as many at a time as one function call takes."""
    for source in dict.fromkeys(entry.source for entry in entries):
        of_source = [entry for entry in entries if entry.source == source]
        for i in range(0, len(of_source), _BATCH):
            yield source, of_source[i : i + _BATCH]


class Leases:
    """The entries of one group that this process holds.

    Args:
        call: sends a command and returns its reply.
        calls: the commands of this consumer.
        lease: seconds after which an entry that was not renewed may be claimed by others.
        on_lost: called with an entry that turns out not to be held any more.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        calls: GroupCalls,
        lease: float,
        on_lost: Callable[[Entry], None],
    ) -> None:
        self._call = call
        self._calls = calls
        self.lease = lease
        self._on_lost = on_lost
        self._held: dict[tuple[Source, str], Entry] = {}

    def __len__(self) -> int:
        """How many entries are held."""
        return len(self._held)

    def held(self) -> list[Entry]:
        """The entries that are held, oldest hold first."""
        return list(self._held.values())

    def hold(self, entry: Entry) -> bool:
        """Notes an entry that the server gave to this consumer; False if it is held already."""
        until = asyncio.get_running_loop().time() + self.lease
        key = (entry.source, entry.id)
        known = self._held.get(key)
        if known is not None and (known.busy or known.counter == entry.counter):
            known.lease_until = until
            return False
        if known is not None:
            self._lose(known)
        entry.lease_until = until
        self._held[key] = entry
        return True

    def let_go(self, entry: Entry) -> None:
        """Forgets an entry that is settled, or handed back."""
        key = (entry.source, entry.id)
        if self._held.get(key) is entry:
            del self._held[key]

    def lose_all(self) -> None:
        """The group is gone, and with it every entry that was held in it."""
        for entry in self.held():
            if not entry.busy:
                self._lose(entry)

    async def keep(self) -> None:
        """Renews what is held, again and again, until cancelled."""
        while True:
            answered = await self.renew()
            await asyncio.sleep(self.lease / (3 if answered else 10))

    async def renew(self) -> bool:
        """Renews what is held. Returns whether the server answered."""
        for source, entries in batches([entry for entry in self.held() if not entry.busy]):
            asked = asyncio.get_running_loop().time()
            try:
                codes = await self._call(*self._calls.renew(source, entries))
            except AgentStreamError as error:
                if not group_is_gone(error):
                    _log.debug("cannot renew %d entries: %s", len(entries), error)
                    return False
                codes = [0] * len(entries)
            for entry, code in zip(entries, codes, strict=True):
                if code == DONE:
                    entry.lease_until = asked + self.lease
                elif not entry.busy and self._held.get((source, entry.id)) is entry:
                    self._lose(entry)
        return True

    def _lose(self, entry: Entry) -> None:
        entry.lost = True
        self.let_go(entry)
        self._on_lost(entry)
