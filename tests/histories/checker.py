"""Checks a history against the promises of docs/guarantees.md, one function for each of them.

The checker is pure: it reads what processes wrote down and what the server shows in the end. What cannot be
known, as where a process was killed between an effect and its record, counts in favour of the product; the
exceptions are those that the page names: the table "Tested faults", and "What is not promised".
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from agentstream.protocol.reasons import Reason
from histories.evidence import NEVER, PARTS, TAKES_DATA, Call, Delivery, Evidence
from histories.records import GroupEnd, History, StreamEnd

IN_DOUBT, REJECTED = "EffectInDoubt", "AsTold"
"""Reasons that the handlers of a run give."""

ONCE = 3_600_000
"""For how long `once=` is remembered, in ms of the server's clock."""


class Promise(StrEnum):
    """What may be broken."""

    KEPT = "nothing accepted is lost"
    ONE_ENTRY = "one call makes one entry"
    ONE_SETTLEMENT = "only the holder settles"
    FENCED = "fences grow"
    ORDERED = "messages of a key are handled one after the other"
    EFFECT_ONCE = "an effect is not repeated"
    NOT_TWICE = "handled twice only where the table allows it"
    ALLOWED_LETTERS = "only allowed dead letters"
    COUNTED = "counters are the truth"
    NOT_STUCK = "nothing is stuck"
    RECEIPTS = "a receipt claims no acknowledgement that was not given"


class Violation(NamedTuple):
    """A promise that was broken, where, and what shows it."""

    promise: Promise
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.where}: {self.what}"


def check(history: History) -> list[Violation]:
    """Returns every violation."""
    evidence = Evidence.of(history)
    return [violation for judge in JUDGES for violation in judge(evidence)]


def entry_order(entry: str) -> tuple[int, int]:
    """An id as two numbers."""
    ms, _, sequence = entry.partition("-")
    return int(ms), int(sequence)


def kept(evidence: Evidence) -> Iterator[Violation]:
    """What a call has returned for is handled in every group, or a dead letter there."""
    settled = {(run.began.group, run.began.n) for run in evidence.deliveries() if run.verb == "ack"}
    settled |= {(group, letter.n) for group, letter in evidence.letters()}
    # with `once`, a call may have returned the entry of an earlier one, which may be gone by then
    since: dict[str | None, int] = {}
    for call in evidence.calls.values():
        since[call.entry] = min(since.get(call.entry, NEVER), call.called.t)
    added = {run.began.entry: run.began.n for run in evidence.deliveries()}
    for stream in evidence.history.streams.values():
        added |= stream.entries
    for n, call in evidence.calls.items():
        if call.entry is None or added.get(call.entry, n) != n:
            continue
        for group in call.called.groups:
            gone = evidence.destroyed(group, since[call.entry], NEVER, TAKES_DATA)
            if not gone and (group, n) not in settled:
                yield Violation(Promise.KEPT, group, f"message {n}, entry {call.entry}, was never handled")


def one_entry(evidence: Evidence) -> Iterator[Violation]:
    """A call, or calls with one `once=`, made one entry; a call that was refused made none."""
    entries: dict[int, set[str]] = defaultdict(set)
    for run in evidence.deliveries():
        entries[run.began.n].add(run.began.entry)
    for stream in evidence.history.streams.values():
        for entry, n in stream.entries.items():
            entries[n].add(entry)
    for _, letter in evidence.letters():
        entries[letter.n].add(letter.entry)
    together: dict[str, list[Call]] = defaultdict(list)
    for n, call in evidence.calls.items():
        together[call.called.once or f"call {n}"].append(call)
    for name, calls in together.items():
        made = {entry for call in calls for entry in entries[call.called.n]}
        made |= {call.entry for call in calls if call.entry}
        since, until = min(call.called.t for call in calls), max(call.ended for call in calls)
        stream = calls[0].called.stream
        span = max(made, default="0-0", key=entry_order), min(made, default="0-0", key=entry_order)
        if entry_order(span[0])[0] - entry_order(span[1])[0] > ONCE:
            continue
        if len(made) > 1 and not evidence.destroyed(stream, since, until, TAKES_DATA):
            yield Violation(Promise.ONE_ENTRY, stream, f"{name} made {sorted(made)}")
        if made and all(call.entry is None and not call.doubt for call in calls):
            yield Violation(Promise.ONE_ENTRY, stream, f"{name} was refused and made {sorted(made)}")


def one_settlement(evidence: Evidence) -> Iterator[Violation]:
    """A message is settled once, and by its last delivery."""
    letters = evidence.dead()
    for (group, entry), runs in evidence.runs.items():
        where, first = f"{group} {entry}", runs[0].began.t
        final = [run for run in runs if run.is_final and not evidence.is_doubtful(run)]
        for one, two in itertools.pairwise(sorted(final, key=lambda run: run.called)):
            if not evidence.destroyed(group, first, two.called):
                yield Violation(Promise.ONE_SETTLEMENT, where, f"settled by {one} and by {two}")
        for run in final:
            is_dead = run.verb == "ack" and (group, entry) in letters
            if is_dead and not evidence.destroyed(group, first, NEVER):
                yield Violation(Promise.ONE_SETTLEMENT, where, f"settled by {run}, and a dead letter")
        for run, later in itertools.permutations(runs, 2):
            overtaken = later.began.fence > run.began.fence and later.began.t < run.called
            known = run.held and not evidence.is_doubtful(run)
            if overtaken and known and not evidence.destroyed(group, first, run.called):
                yield Violation(
                    Promise.ONE_SETTLEMENT, where, f"{later} had it in hand when {run} settled it"
                )


def fenced(evidence: Evidence) -> Iterator[Violation]:
    """No two handlers start on a message with the same fence."""
    for (group, entry), runs in evidence.runs.items():
        for one, two in itertools.combinations(runs, 2):
            same = one.began.fence == two.began.fence
            if same and not evidence.destroyed(group, runs[0].began.t, two.began.t):
                yield Violation(Promise.FENCED, f"{group} {entry}", f"{one} and {two}")


def ordered(evidence: Evidence) -> Iterator[Violation]:
    """Of messages with one key, each starts when the one before it is settled.

    Only handlers count that held their message to the end: who lost a lease may still be running.
    """
    by_key: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
    for run in evidence.deliveries():
        if run.began.key and run.held and not evidence.is_doubtful(run):
            by_key[run.began.group, run.began.key].append(run)
    for (group, key), runs in by_key.items():
        runs.sort(key=lambda run: run.began.t)
        for one, two in itertools.pairwise(runs):
            if _in_order(evidence, one, two) or evidence.destroyed(group, one.began.t, two.began.t):
                continue
            if not any(_is_of_before(evidence, run) for run in (one, two)):
                text = f"{two.began.entry} ({two}) started beside or before {one.began.entry} ({one})"
                # an order that was broken once in a thousand runs has to be explained from this
                text += "".join(
                    f"\n      {run.began.t} to {run.called} to {run.ended}: {run}" for run in runs
                )
                yield Violation(Promise.ORDERED, f"{group} key {key}", text)


def _in_order(evidence: Evidence, one: Delivery, two: Delivery) -> bool:
    """Whether a handler that began after another one with the same key might do so."""
    place = one.began.group, one.began.entry
    first, second = entry_order(one.began.entry), entry_order(two.began.entry)
    if two.began.t < one.called or first > second:
        return False
    over = any(
        # a verb that may have been repeated may have settled it whatever it returned; after the last attempt
        # a retry makes it a dead letter, which a flush may have taken
        (run.verb != "retry" or run.began.attempt >= evidence.history.max_deliveries)
        and run.called < two.began.t
        and (run.held or evidence.is_doubtful(run))
        for run in evidence.runs[place]
    )
    return first == second or over or place in evidence.dead()


def _is_of_before(evidence: Evidence, run: Delivery) -> bool:
    """Whether it is a retry of what was delivered before its group was destroyed: it comes beside that."""
    group, entry = run.began.group, run.began.entry
    first = evidence.runs[group, entry][0]
    return run.began.attempt > 1 and evidence.destroyed(group, first.began.t, run.began.t)


def effects_once(evidence: Evidence) -> Iterator[Violation]:
    """An effect that `delivery.once` brackets comes about once in its group."""
    for (group, name), effects in evidence.effects.items():
        for one, two in itertools.pairwise(effects):
            if not evidence.hit("", one.t, two.t, {"flush"}):
                text = f"{name} by {one.who}#{one.d} and {two.who}#{two.d}"
                yield Violation(Promise.EFFECT_ONCE, group, text)


def not_twice(evidence: Evidence) -> Iterator[Violation]:
    """A handler that has come to its end is followed by another one only after what the table names."""
    for (group, entry), runs in evidence.runs.items():
        done = [run for run in runs if run.verb == "ack"]
        for one, two in itertools.pairwise(done):
            allowed = (
                evidence.destroyed(group, runs[0].began.t, two.began.t)
                or evidence.may_be_taken(one, two.began.t)
                or evidence.may_be_taken(two, two.began.t)
            )
            if not allowed:
                yield Violation(Promise.NOT_TWICE, f"{group} {entry}", f"{one}, then {two}")


def allowed_letters(evidence: Evidence) -> Iterator[Violation]:
    """A dead letter has used up its attempts, or its handler wanted it."""
    limit = evidence.history.max_deliveries
    for group, letter in evidence.letters():
        call = evidence.calls.get(letter.n)
        work = call.called.work if call else {}
        runs = evidence.runs.get((group, letter.entry), [])
        # an attempt may be counted of which its process could write nothing
        cut_short = sum(fault.kind in {"kill", "terminate"} | PARTS for fault in evidence.faults)
        used_up = len(runs) + cut_short >= limit and letter.attempts >= limit
        failed = [run for run in runs if run.verb != "ack" or not run.held]
        allowed = {
            str(Reason.MAX_DELIVERIES): used_up and len(failed) == len(runs),
            REJECTED: bool(work.get("rejects")),
            IN_DOUBT: bool(work.get("effect")) and bool(evidence.faults),
        }
        if not allowed.get(letter.reason, False):
            text = f"{letter.reason} after {letter.attempts} attempts, handlers: {'; '.join(map(str, runs))}"
            yield Violation(Promise.ALLOWED_LETTERS, f"{group} {letter.entry}", f"message {letter.n}: {text}")
    for run in evidence.deliveries():
        if run.began.attempt > limit:
            text = f"{run} is one attempt too many"
            yield Violation(Promise.ALLOWED_LETTERS, f"{run.began.group} {run.began.entry}", text)


def counted(evidence: Evidence) -> Iterator[Violation]:
    """While nothing is destroyed, every entry has left each group by one way, and none is lost."""
    acked: dict[str, set[str]] = defaultdict(set)
    tried: dict[str, set[str]] = defaultdict(set)
    for run in evidence.deliveries():
        if run.verb == "ack":
            tried[run.began.group].add(run.began.entry)
            if run.held:
                acked[run.began.group].add(run.began.entry)
    for name, stream in evidence.history.streams.items():
        if evidence.destroyed(name, 0, NEVER, TAKES_DATA):
            continue
        known = _entries(evidence, name, stream)
        if stream.added != len(known):
            text = f"{stream.added} entries were added, {len(known)} are known"
            yield Violation(Promise.COUNTED, name, text)
        for group, end in stream.groups.items():
            if evidence.destroyed(group, 0, NEVER):
                continue
            for text in _miscounted(end, stream.added, len(acked[group]), len(tried[group])):
                yield Violation(Promise.COUNTED, group, text)


def _entries(evidence: Evidence, name: str, stream: StreamEnd) -> set[str]:
    """All entries of a stream of which anybody knows."""
    known = set(stream.entries) | {letter.entry for end in stream.groups.values() for letter in end.letters}
    known |= {run.began.entry for run in evidence.deliveries() if run.began.group.partition("/")[0] == name}
    return known | {c.entry for c in evidence.calls.values() if c.entry and c.called.stream == name}


def _miscounted(end: GroupEnd, added: int, acked: int, tried: int) -> Iterator[str]:
    if end.lost:
        yield f"{end.lost} are counted as lost"
    if not acked <= end.acked <= tried:
        yield f"{end.acked} are counted as acknowledged, which were {acked} to {tried}"
    if end.dead != len(end.letters):
        yield f"{end.dead} are counted as dead letters, which are {len(end.letters)}"
    if not any(end.left.values()) and end.acked + end.skipped + end.dead + end.lost != added:
        yield f"{added} were added, {end.acked} acknowledged, {end.skipped} skipped, {end.dead} dead"


def not_stuck(evidence: Evidence) -> Iterator[Violation]:
    """In the end every group has settled everything."""
    for stream in evidence.history.streams.values():
        for group, end in stream.groups.items():
            if any(end.left.values()):
                left = ", ".join(f"{count} {what}" for what, count in end.left.items() if count)
                yield Violation(Promise.NOT_STUCK, group, left)


def receipts(evidence: Evidence) -> Iterator[Violation]:
    """A group that a receipt names had called `ack` by then."""
    acknowledged: dict[tuple[str, int], int] = {}
    for run in evidence.deliveries():
        if run.verb == "ack":
            place = run.began.group, run.began.n
            acknowledged[place] = min(acknowledged.get(place, NEVER), run.called)
    for claim in evidence.claims:
        for group in claim.groups:
            if acknowledged.get((group, claim.n), NEVER) > claim.t:
                yield Violation(Promise.RECEIPTS, group, f"message {claim.n} was not acknowledged")


JUDGES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    kept,
    one_entry,
    one_settlement,
    fenced,
    ordered,
    effects_once,
    not_twice,
    allowed_letters,
    counted,
    not_stuck,
    receipts,
)
