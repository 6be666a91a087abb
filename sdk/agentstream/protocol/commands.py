"""The commands that agents and the operator send: every call of the function library is built here.

Each function returns a command as a tuple, for `Client.call`; its docstring says what the server replies. The
contracts above the functions in `functions/*.lua` list the same arguments in the same order: a test compares
them. Times are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Literal, Protocol

from agentstream.protocol.entry import Source
from agentstream.protocol.keys import StreamKeys, pod_prefix
from agentstream.protocol.routes import Consumes

Argument = bytes | str | int | float
"""An argument of a command."""

Command = tuple[Argument, ...]
"""A command and its arguments."""

DONE, GONE, TAKEN, TRIMMED = 1, 0, -1, -2
"""Replies for one entry: done; it is not pending; another delivery has it; it was trimmed."""

MORE = -1
"""A reply: there is more to do than one call does."""

PAGE = 500
"""The most entries or consumers that one call changes."""

REVISION: Command = ("FCALL_RO", "as1_revision", 0)
"""Replies with the revision of the library that the server has."""


class PendingEntry(Protocol):
    """An entry that a consumer holds, as far as commands name it."""

    @property
    def source(self) -> Source:
        """The stream that it is on."""

    @property
    def id(self) -> str:
        """Its id there."""

    @property
    def counter(self) -> int:
        """The delivery counter at which the consumer holds it."""

    @property
    def after(self) -> str | None:
        """The entry before it with the same ordering key; None without a key."""


def add(keys: StreamKeys, token: str, number: int, lifetime: int, messages: Iterable[Argument]) -> Command:
    """Adds a batch of messages; sent again under the same number, it is added once.

    A sender that the server does not remember is refused, unless it introduces itself by number 0.

    Replies with `<number> <result> ...`: for each message the id of its entry, `BACKPRESSURE` or `NOSTREAM`.

    Args:
        keys: of the stream.
        token: names the sender.
        number: of the batch.
        lifetime: for how long the batch may be sent again.
        messages: the arguments of each message; see `message`.
    """
    sent = (keys.sent(token), number, lifetime)
    return ("FCALL", "as1_add", 1, keys.stream, *sent, keys.gate, keys.order, *messages)


def message(data: bytes, options: Sequence[Argument] = ()) -> Command:
    """The arguments of one message in `add`.

    Args:
        data: the envelope.
        options: pairs: `once` and a key of the sender's, `key` and an ordering key, `receipts` and the key of
            the stream's receipts, or a field and its value.
    """
    return data, len(options), *options


def reply(key: str, lifetime: int, fields: Iterable[Argument]) -> Command:
    """Adds an answer to a reply stream, which then lives for at least `lifetime`. Replies with its id."""
    return ("FCALL", "as1_reply", 1, key, lifetime, *fields)


def receipt(keys: StreamKeys, groups: Sequence[str], entries: Iterable[str]) -> Command:
    """Asks what became of entries in groups.

    Replies with the value of a `ReceiptState` for each group of the first entry, then of the next ones.
    """
    parked = chain.from_iterable((group, keys.parked(group)) for group in groups)
    return ("FCALL_RO", "as1_receipt", 1, keys.stream, keys.receipts, len(groups), *parked, *entries)


def once(stream: str, done_key: str, token: str, lifetime: int) -> Command:
    """Asks whether this token may bring an effect about, and notes that it does.

    Replies with 1 if it may, 0 if the effect is done, -1 if another token began it.
    """
    return ("FCALL", "as1_once", 1, stream, done_key, token, lifetime)


def end_once(
    stream: str, done_key: str, token: str, verb: Literal["done", "undone"], lifetime: int
) -> Command:
    """Notes that an effect came about, or that it did not. Replies with 1 if that was noted."""
    return ("FCALL", "as1_end_once", 1, stream, done_key, token, verb, lifetime)


class SignedEntry(Protocol):
    """A signed message, as far as commands tell it from copies."""

    @property
    def origin(self) -> str:
        """Its id on the main stream, the same for every attempt."""

    @property
    def digest(self) -> bytes:
        """The same for all copies."""


class GroupCalls:
    """The commands of one consumer of a group.

    Args:
        policy: the group's streams and policy.
        consumer: the consumer's name.

    Attributes:
        consumer: the same.
        main: the main stream.
        retries: the group's retry stream.
    """

    def __init__(self, policy: Consumes, consumer: str) -> None:
        keys = StreamKeys(policy.key)
        self._group = policy.group
        self.consumer: str = consumer
        self._stats = keys.stats(policy.group)
        self._parked = keys.parked(policy.group)
        self._receipts = keys.receipts if policy.broadcast else ""
        self._delay = keys.delay(policy.group)
        self._seen = keys.seen(policy.group), keys.earlier(policy.group)
        self._dead_letters = keys.dead_letters(policy.group)
        self.main: Source = Source(policy.key, retry=False)
        self.retries: Source = Source(keys.retry(policy.group), retry=True)

    @property
    def sources(self) -> tuple[Source, Source]:
        """The main stream and the retry stream."""
        return self.main, self.retries

    def read(self, sources: Collection[Source], count: int, block: int | None) -> Command:
        """Reads up to `count` new entries of each stream; waits for up to `block` ms until one comes."""
        streams = (*(source.key for source in sources), *(">" for _ in sources))
        consumer = ("GROUP", self._group, self.consumer)
        waiting = () if block is None else ("BLOCK", block)
        return ("XREADGROUP", *consumer, "COUNT", count, *waiting, "STREAMS", *streams)

    def take(self, source: Source, holder: str, start: str, count: int) -> Command:
        """Claims a page of what `holder` has: this consumer, or one whose process has ended.

        Replies `[next start, or '' at the end, [[id, counter, fields], ...]]`; of an entry that is too large,
        with its size in place of the fields.
        """
        return self._call("as1_take", source.key, self._stats, int(source.retry), holder, start, count)

    def consumers(self, source: Source) -> Command:
        """Lists the group's consumers. Replies with a list of fields and values, for each."""
        return ("XINFO", "CONSUMERS", source.key, self._group)

    def sweep(self, lease: int, interval: int, count: int, *, now: bool) -> Command:
        """Moves due retries, and claims entries whose leases have run out if it is time, or `now`.

        A page of each. Replies `[moved, entries, entries of the retry stream, ms until the next sweep]`; 0 ms
        means that there is more to claim.
        """
        keys = (self._stats, self._delay, self.retries.key)
        return self._call("as1_sweep", self.main.key, *keys, lease, interval, count, int(now))

    def begin(self, source: Source, entries: Iterable[PendingEntry]) -> Command:
        """Counts an attempt on each entry. Replies with the new counters; 0 for an entry that was lost."""
        return self._call("as1_begin", source.key, self._stats, int(source.retry), *_held(entries))

    def renew(self, source: Source, lease: int, entries: Iterable[PendingEntry]) -> Command:
        """Renews leases. Replies with a code for each entry."""
        return self._call("as1_renew", source.key, self._stats, int(source.retry), lease, *_held(entries))

    def release(self, source: Source, state: str, entries: Collection[PendingEntry]) -> Command:
        """Hands back entries that are all `claimed`, `delivered` or `begun`.

        Replies with codes for the first ones, at least one: for as many as one call moves.
        """
        where = (self._stats, int(source.retry), self._parked_of(entries), self.retries.key)
        return self._call("as1_release", source.key, *where, state, *_held(entries))

    def settle(self, source: Source, outcome: str, entries: Collection[PendingEntry]) -> Command:
        """Acknowledges entries as `acked` or `skipped`.

        Replies with codes for the first ones, at least one: for as many as one call reads.
        """
        where = (self._stats, self._parked_of(entries), self._receipts, int(source.retry))
        return self._call("as1_settle", source.key, *where, outcome, *_held(entries))

    def retry(self, entry: PendingEntry, delay: int, attempts: int, reason: str, error: str) -> Command:
        """Has an entry delivered again after `delay` ms. Replies with a code."""
        later = (self._delay, self.retries.key, delay, attempts, reason, error)
        return self._call("as1_retry", entry.source.key, *self._one(entry), *later)

    def dead_letter(self, entry: PendingEntry, attempts: int, reason: str, error: str) -> Command:
        """Moves an entry to the group's dead letters. Replies with a code."""
        why = (self._dead_letters, attempts, reason, error)
        return self._call("as1_dead_letter", entry.source.key, *self._one(entry), *why)

    def originals(self, entries: Iterable[SignedEntry]) -> Command:
        """Asks in which entry the group first met each message. Replies with an id for each."""
        met: Iterable[Argument] = chain.from_iterable((entry.origin, entry.digest) for entry in entries)
        return ("FCALL", "as1_originals", 1, self.main.key, *self._seen, *met)

    def turn(self, source: Source, entries: Iterable[PendingEntry]) -> Command:
        """Asks of which entries of a source the predecessors are finished. Replies with 1 or 0 for each."""
        waiting: Iterable[Argument] = chain.from_iterable(
            (entry.id, entry.counter, entry.after or "") for entry in entries
        )
        streams = (2, self.main.key, source.key) if source.retry else (1, self.main.key)
        return ("FCALL", "as1_turn", *streams, self._group, self.consumer, self._parked, *waiting)

    def _one(self, entry: PendingEntry) -> Command:
        return (self._stats, self._parked_of((entry,)), int(entry.source.retry), entry.id, entry.counter)

    def _parked_of(self, entries: Collection[PendingEntry]) -> str:
        """The key that tells what became of retried entries, where receipts or ordering need it; else ''."""
        is_needed = self._receipts or any(entry.after is not None for entry in entries)
        return self._parked if is_needed else ""

    def _call(self, function: str, key: str, *arguments: Argument) -> Command:
        return ("FCALL", function, 1, key, self._group, self.consumer, *arguments)


def _held(entries: Iterable[PendingEntry]) -> Iterable[Argument]:
    return chain.from_iterable((entry.id, entry.counter) for entry in entries)


def create_stream(key: str, owner: Mapping[str, str]) -> Command:
    """Creates an empty stream if there is no key, and records its owner. Replies 1 if it was created."""
    return ("FCALL", "as1_create_stream", 1, key, StreamKeys(key).meta, *flat(owner))


def set_contracts(key: str, digest: str, schemas: Mapping[str, str | bytes]) -> Command:
    """Replaces the contracts of a stream; `digest` is empty if there are none. Replies 1."""
    return ("FCALL", "as1_set_contracts", 1, key, StreamKeys(key).contracts, digest, *flat(schemas))


def create_group(key: str, group: str, start: str) -> Command:
    """Creates a group and its retry stream; `start` is `0`, `$` or an id. Replies 1 if it was created."""
    return ("FCALL", "as1_create_group", 1, key, StreamKeys(key).base, group, start)


def destroy_group(key: str, group: str) -> Command:
    """Removes a group and its keys, except for dead letters.

    Replies 1 if there was a group, 0 if there was none, `MORE` if the call is to be made again.
    """
    return ("FCALL", "as1_destroy_group", 1, key, StreamKeys(key).base, group)


def heal_group(key: str, group: str, *, again: bool) -> Command:
    """Begins a group's account anew; `again` delivers again what it was given since its checkpoint.

    Replies 1, 0 if there is no such group, `MORE` if the call is to be made again.
    """
    return ("FCALL", "as1_heal_group", 1, key, StreamKeys(key).base, group, int(again))


def heal_ids(key: str, groups: Iterable[str]) -> Command:
    """Begins a stream anew whose ids are of the future; groups get what is unsettled as retries.

    Replies 1 if it did, 0 if the ids are of the present, `MORE` if the call is to be made again.
    """
    return ("FCALL", "as1_heal_ids", 1, key, StreamKeys(key).base, *groups)


def delete_stream(key: str, groups: Iterable[str], *, only_if_empty: bool) -> Command:
    """Deletes a stream and all keys derived from it. Replies 0 if it was kept as it is not empty, else 1."""
    return ("FCALL", "as1_delete_stream", 1, key, StreamKeys(key).base, int(only_if_empty), *groups)


def observe(key: str, groups: Iterable[str], *, trusts_lag: bool) -> Command:
    """Reads the state of a stream and of its groups. Replies with a JSON object."""
    return ("FCALL_RO", "as1_observe", 1, key, StreamKeys(key).base, int(trusts_lag), *groups)


def measure(streams: Sequence[tuple[str, str, Sequence[str]]], *, trusts_lag: bool) -> Command:
    """Reads the state of many streams.

    Replies with the server's time, and for each of the first streams, at least one, a JSON object, '' if
    nothing has changed, or the text of an error.

    Args:
        streams: of each its key, the SHA-1 of the reply that is known ('' for none), and its declared groups.
        trusts_lag: whether the server's own lag is right after unread entries were trimmed.
    """
    arguments: Iterable[Argument] = chain.from_iterable(
        (StreamKeys(key).base, known, len(groups), *groups) for key, known, groups in streams
    )
    keys = (key for key, _, _ in streams)
    return ("FCALL_RO", "as1_measure", len(streams), *keys, int(trusts_lag), *arguments)


def release_pod(
    key: str, group: str, gone: tuple[str, int | None], start: str, *, for_good: bool, retries: bool
) -> Command:
    """Makes a page of the entries that processes of a pod held claimable at once.

    Replies `[next start, or '' at the end, number of entries]`.

    Args:
        key: of the stream.
        group: name of the group.
        gone: name of the pod, and before how many ms since 1970 its processes started; None for all of them.
        start: the id from which on; `-` at first.
        for_good: no pod will have the name again: its processes claim nothing from now on.
        retries: whether those on the retry stream are meant.
    """
    pod, before = gone
    where = (StreamKeys(key).base, group, pod_prefix(pod), "" if before is None else before)
    return ("FCALL", "as1_orphan", 1, key, *where, int(for_good), int(retries), start)


def remove_consumers(key: str, group: str, pod: str, before: int | None) -> Command:
    """Removes consumers of a pod, as in `release_pod`, that hold nothing.

    Replies with their names; after a full `PAGE`, there may be more.
    """
    where = (StreamKeys(key).base, group, pod_prefix(pod), "" if before is None else before)
    return ("FCALL", "as1_remove_consumers", 1, key, *where)


def janitor(
    key: str,
    limits: tuple[int, int, int, str, int],
    groups: Iterable[tuple[str, int, int]],
    *,
    trusts_lag: bool,
    broadcast: bool,
) -> Command:
    """Moves due retries, removes idle consumers, trims, and opens or closes admission. Replies with JSON.

    Args:
        key: of the stream.
        limits: minimum age in ms, maximum length, maximum bytes (0 for none), what to do when the stream is
            full, and how many entries to remove at most.
        groups: of each declared group its name, its lease, and the age of dead letters to keep (0 for all).
        trusts_lag: as in `measure`.
        broadcast: whether receipts need to know about dead letters.
    """
    options = (*limits, int(trusts_lag), int(broadcast))
    declared: Iterable[Argument] = chain.from_iterable(groups)
    return ("FCALL", "as1_janitor", 1, key, StreamKeys(key).base, *options, *declared)


def flat(fields: Mapping[str, str | bytes]) -> Command:
    """Fields and values as the arguments of a command."""
    return tuple(chain.from_iterable(fields.items()))
