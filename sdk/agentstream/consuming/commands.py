"""The commands of one consumer of one group: how the library's functions are called stands only here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain

from agentstream.consuming.hold import Hold, HoldState
from agentstream.protocol.entry import Source
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.transport.client import Argument

Command = tuple[Argument, ...]


class GroupCalls:
    """Commands of one consumer.

    Args:
        policy: the group's streams and policy.
        consumer: the consumer's name.
    """

    def __init__(self, policy: Consumes, consumer: str) -> None:
        keys = StreamKeys(policy.key)
        self._group = policy.group
        self._consumer = consumer
        self._stats = keys.stats(policy.group)
        self._parked = keys.parked(policy.group)
        self._is_broadcast = policy.broadcast
        self._delay = keys.delay(policy.group)
        self._dead_letters = keys.dead_letters(policy.group)
        self.main: Source = Source(policy.key, retry=False)
        self.retries: Source = Source(keys.retry(policy.group), retry=True)

    @property
    def sources(self) -> tuple[Source, Source]:
        """The main stream and the retry stream."""
        return self.main, self.retries

    def read(self, sources: Collection[Source], count: int, block: int) -> Command:
        """Reads up to `count` new entries of each stream, waiting up to `block` ms for the first."""
        streams = (*(source.key for source in sources), *(">" for _ in sources))
        who = ("GROUP", self._group, self._consumer)
        return ("XREADGROUP", *who, "COUNT", count, "BLOCK", block, "STREAMS", *streams)

    def take(self, source: Source, prefix: str, start: str, count: int) -> Command:
        """What it and others of the prefix hold; replies `[next start, [[id, counter, fields]]]`."""
        return self._call("as1_take", source, self._stats, int(source.retry), prefix, start, count)

    def sweep(self, lease: int, interval: int, count: int, limit: int | None, *, now: bool) -> Command:
        """Moves due retries, and claims stalled entries if it is time, or `now`; times are in ms.

        Past `limit` of the server's clock it claims only what was handed back. Replies `[moved, entries,
        entries of retries, ms until it is time again, what the clock shows]`.
        """
        keys = (self._stats, self._delay, self.retries.key)
        until = "" if limit is None else limit
        return self._call("as1_sweep", self.main, *keys, lease, interval, count, int(now), until)

    def begin(self, source: Source, entries: Iterable[Hold]) -> Command:
        """Counts an attempt; replies with the new counters, 0 for what is not held."""
        return self._call("as1_begin", source, self._stats, int(source.retry), *_held(entries))

    def renew(self, source: Source, entries: Iterable[Hold]) -> Command:
        """Renews leases; replies with a code for each."""
        return self._call("as1_renew", source, self._stats, int(source.retry), *_held(entries))

    def release(self, source: Source, state: HoldState, entries: Collection[Hold]) -> Command:
        """Hands entries of one state back; replies with a code for each."""
        where = (self._stats, int(source.retry), self._parked_of(entries), self.retries.key)
        return self._call("as1_release", source, *where, state, *_held(entries))

    def settle(self, source: Source, outcome: str, entries: Collection[Hold]) -> Command:
        """Takes entries off the group, `acked` or `skipped`; replies with a code for each."""
        where = (self._stats, self._parked_of(entries), int(source.retry))
        return self._call("as1_settle", source, *where, outcome, *_held(entries))

    def retry(self, entry: Hold, delay: int, attempts: int, reason: str, error: str) -> Command:
        """Puts an entry off for `delay` ms; replies with a code."""
        where = (self._stats, self._parked_of((entry,)), int(entry.source.retry), *_held((entry,)))
        later = (self._delay, self.retries.key, delay)
        return self._call("as1_retry", entry.source, *where, *later, attempts, reason, error)

    def dead_letter(self, entry: Hold, attempts: int, reason: str, error: str) -> Command:
        """Gives an entry up; replies with a code."""
        where = (self._stats, self._parked_of((entry,)), int(entry.source.retry), *_held((entry,)))
        return self._call(
            "as1_dead_letter", entry.source, *where, self._dead_letters, attempts, reason, error
        )

    def turn(self, predecessors: Iterable[str]) -> Command:
        """Which of these entries, that come before others, are finished; replies with 1 or 0 for each."""
        return ("FCALL", "as1_turn", 1, self.main.key, self._group, self._parked, *predecessors)

    def _parked_of(self, entries: Collection[Hold]) -> str:
        """Where it is kept what becomes of retried entries, if receipts or what follows ask for it."""
        is_asked_for = self._is_broadcast or any(entry.after is not None for entry in entries)
        return self._parked if is_asked_for else ""

    def _call(self, function: str, source: Source, *arguments: Argument) -> Command:
        return ("FCALL", function, 1, source.key, self._group, self._consumer, *arguments)


def _held(entries: Iterable[Hold]) -> Iterable[Argument]:
    """What the functions know an entry by: its id and the counter at which it is held."""
    return chain.from_iterable((entry.id, entry.counter) for entry in entries)
