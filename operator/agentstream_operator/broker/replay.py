"""Reads what replays select, a page at a time, and counts what they would do; nothing is written here."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.replaying import (
    FIRST,
    LAST,
    EntryPage,
    PageEntry,
    ReplayProgress,
    Selected,
    page,
    parse_page,
)
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.letters import Letter, read_letter
from agentstream_operator.plan.outlook import warnings
from agentstream_operator.plan.replay import IdRange, place, span_of
from agentstream_operator.plan.selection import Selection, is_dead, selection_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.streamreplay import StreamReplaySpec

Call = Callable[..., Awaitable[Any]]
"""Sends a command and returns its reply, as `Client.call`."""

SAMPLE: Final = 10
"""How many messages that match a preview shows."""

MANY: Final = 250
"""Entries that are read at a time: two ms, during which the server does nothing else."""

_FEW = 20


async def pages(call: Call, key: str, span: IdRange, *, ahead: bool = False) -> AsyncGenerator[EntryPage]:
    """Yields the entries between two ids, a page at a time: a MiB and an entry, or `MANY` entries.

    `ahead`: the next page is read while one is worked on.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    following: str | None = span.start
    count, reading = _FEW, None
    try:
        while following is not None:
            part = span._replace(start=following)
            found = await (reading or _read(call, key, part, count))
            following, count, reading = found.next, MANY, None
            if ahead and following is not None:
                reading = asyncio.create_task(_read(call, key, span._replace(start=following), count))
            yield found
            # others of the event loop get their turn
            await asyncio.sleep(0)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def last_entry(call: Call, key: str) -> str:
    """Reads the id of the last entry of a stream, or of dead letters; `0-0` where there is none.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    found = parse_page(await call(*page(key, FIRST, LAST, 1, "backward")))
    return found.entries[0].id if found.entries else "0-0"


def read_key(spec: StreamReplaySpec, group: ConsumerGroup, stream: AgentStream) -> str:
    """Returns the key that a replay reads: the stream, or the group's dead letters."""
    key = stream.stream_key
    return StreamKeys(key).dead_letters(group.group_name) if is_dead(spec) else key


async def _read(call: Call, key: str, span: IdRange, count: int) -> EntryPage:
    return parse_page(await call(*page(key, span.start, span.end, count)))


def readable(key: str, found: PageEntry, *, dead: bool) -> Entry | Letter:
    """Reads an entry of a stream, or of dead letters."""
    if dead:
        return read_letter(key, found.id, found.withheld or found.fields)
    source = Source(key, retry=False)
    if found.withheld:
        return Entry(source, found.id, found.id, None, withheld=found.withheld)
    return parse_entry(source, found.id, found.fields)


@dataclass
class ReplayPreview:
    """What a replay would do with what was looked at.

    Attributes:
        scanned: how many entries were looked at.
        first_scanned, last_scanned: ids of the first and the last of them.
        more: whether there are more, as the time was up.
        matched: how many match.
        moved: how many of them would be moved, or removed.
        skipped: how many would not, by reason.
        first, last: ids of the first and the last one that matches.
        sample: some of those that match, oldest first.
    """

    scanned: int = 0
    first_scanned: str | None = None
    last_scanned: str | None = None
    more: bool = False
    matched: int = 0
    moved: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: str | None = None
    last: str | None = None
    sample: list[Entry | Letter] = field(default_factory=list)

    @property
    def progress(self) -> ReplayProgress:
        """The same as a replay reports it, of which nothing was moved."""
        return ReplayProgress(self.last_scanned or "", self.matched, 0, dict(self.skipped))

    def add(self, found: Entry | Letter, selected: Selected) -> None:
        """Counts one that matches."""
        self.matched += 1
        self.first, self.last = self.first or selected.id, selected.id
        if selected.skip:
            self.skipped[selected.skip] += 1
        else:
            self.moved += 1
        if len(self.sample) < SAMPLE and len(getattr(found, "body", b"") or b"") <= 1 << 16:
            self.sample.append(found)

    def seconds(self, rate: int) -> float:
        """Returns how long it would take at a rate of messages per second."""
        return self.moved / rate


@dataclass(frozen=True, slots=True)
class PreviewScope:
    """What a preview looks at.

    Attributes:
        key: of the stream, or of dead letters.
        dead: whether it is the latter.
        span: the ids.
        delivered: the last entry that the group has got: what comes after it, it gets anyway.
        limit: how many would be moved at most.
    """

    key: str
    dead: bool
    span: IdRange
    delivered: str | None = None
    limit: int | None = None


async def preview(
    call: Call,
    scope: PreviewScope,
    selection: Selection,
    *,
    now: Callable[[], float] = time.time,
    seconds: float = float("inf"),
) -> ReplayPreview:
    """Counts what a replay would do, and changes nothing; needs only the right to read.

    Messages that the group is working on, or tries again, count as those that it would get: nobody knows
    whether it still has them when the replay comes to them.

    Args:
        call: sends a command.
        scope: what is looked at.
        selection: what is selected.
        now: seconds since 1970.
        seconds: after so many it says what it found so far.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    seen, until = ReplayPreview(), time.monotonic() + seconds
    undelivered = place(scope.delivered) if scope.delivered is not None and not scope.dead else None
    async with aclosing(pages(call, scope.key, scope.span, ahead=True)) as read:
        async for found in read:
            at = now()
            for entry in found.entries:
                seen.scanned += 1
                seen.first_scanned, seen.last_scanned = seen.first_scanned or entry.id, entry.id
                message = readable(scope.key, entry, dead=scope.dead)
                selected = selection.verdict(message, at)
                if selected is None:
                    continue
                if not selected.skip and undelivered is not None and place(entry.id) > undelivered:
                    selected = selected._replace(skip="undelivered")
                seen.add(message, selected)
                if scope.limit is not None and seen.moved >= scope.limit:
                    return seen
            if found.next is not None and time.monotonic() >= until:
                seen.more = True
                break
    return seen


@dataclass(frozen=True, slots=True)
class ReplayOutlook:
    """What a replay would do, and what to think of before it is started.

    Attributes:
        preview: what was counted.
        total: how many entries there are, whether in the range or not.
        seconds: how long it would take at the rate that is asked for.
        warnings: a sentence each.
    """

    preview: ReplayPreview
    total: int
    seconds: float
    warnings: tuple[str, ...]


async def look_ahead(
    broker: Broker,
    spec: StreamReplaySpec,
    group: ConsumerGroup,
    stream: AgentStream,
    *,
    keys: Iterable[str] = (),
    seconds: float = float("inf"),
) -> ReplayOutlook:
    """Says what a replay would do if it were started now; needs only the right to read.

    Args:
        broker: reads the server.
        spec: of the replay.
        group: the group that it is for.
        stream: its stream.
        keys: ids of the stream's signing keys, as far as they are known.
        seconds: after so many it says what it found so far; `preview.more` tells.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    name, dead, key = group.group_name, is_dead(spec), read_key(spec, group, stream)
    seen = await broker.observe(stream.stream_key, (name,))
    span = span_of(spec, await last_entry(broker.call, key))
    known, at = tuple(keys), seen.groups.get(name)
    scope = PreviewScope(
        key,
        dead,
        span,
        at.last if at is not None else None,
        spec.limit,
    )
    selection = selection_of(spec, group, stream, known)
    counted = await preview(broker.call, scope, selection, now=lambda: seen.now / 1000, seconds=seconds)
    total = seen.length if not dead else at.dead if at is not None else 0
    said = warnings(spec, stream, seen, name, span, has_keys=bool(known))
    if counted.more:
        said = (
            *said,
            f"only {counted.scanned:,} entries were looked at in {seconds:g} s; the run looks at all",
        )
    elif not counted.matched:
        said = (*said, "no message of the range matches")
    return ReplayOutlook(counted, total, counted.seconds(spec.rate), said)
