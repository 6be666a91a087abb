"""Whatever happens, a replay gives its group each selected message once more, and nobody else notices.

Hypothesis makes up what happens, one step after the other, on a real server: messages come, are read,
handled, fail, die and are lost; the janitor trims; replays of the stream and of dead letters go on page by
page, by two operators that are killed before they hear the reply, so that their cursors are stale. A model
says what each group still has to get and what was lost; the server has to agree after every step.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.entry import Source, position
from agentstream.protocol.keys import StreamKeys, replay_id
from agentstream.protocol.replaying import (
    ELSEWHERE,
    FIRST,
    MOVED,
    NO_ROOM,
    PageEntry,
    ReplayOf,
    Selected,
    after,
    page,
    parse_moved,
    parse_page,
    parse_progress,
    progress,
    replay,
)
from agentstream.protocol.routes import Consumes
from agentstream_operator.plan.accounting import Account, GroupTotals, accumulate_account, counters
from agentstream_operator.plan.ledger import Ledger, ledger_of
from agentstream_operator.plan.observed import StreamSeen
from support.entries import HOUR, KEY
from support.examples import examples

EXAMPLES = examples(40)
STEPS = int(os.environ.get("AGENTSTREAM_STEPS", "50"))
KEYS = StreamKeys(KEY)
GROUPS = ("coder", "tester")
OPERATORS = ("one", "two")
MAKE_DUE = "for _, m in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, m) end"

Copy = tuple[str, str]
"""A message on its way to a group again: its entry, and the replay that it comes from, or ''."""


@dataclass(frozen=True)
class Held:
    """A pending entry."""

    source: Source
    id: str
    counter: int
    copy: Copy
    after: str | None = None


@dataclass
class Has:
    """What a group still has to get, what it gave up, and what it lost."""

    open: set[str] = field(default_factory=set)
    copies: Counter[Copy] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    acked: int = 0


@dataclass
class Run:
    """A replay, and where each operator believes that it is."""

    of: ReplayOf
    is_dead: bool
    chosen: frozenset[str]
    until: str
    cursor: str = ""
    moved: Counter[str] = field(default_factory=Counter)
    matched: int = 0
    believed: dict[str, str] = field(default_factory=lambda: dict.fromkeys(OPERATORS, ""))

    @property
    def key(self) -> str:
        return KEYS.dead_letters(self.of.group) if self.is_dead else KEY


class Replaying(RuleBasedStateMachine):
    """Two groups of a broadcast stream."""

    raw: Any
    clear: Callable[[], None]

    @initialize()
    def begin(self) -> None:
        self.clear()
        self.numbers = numbers()
        self.has = {group: Has() for group in GROUPS}
        self.runs: list[Run] = []
        self.totals: dict[str, GroupTotals] = {}
        self.ledgers: dict[str, Ledger | None] = {}
        self.accounts = {group: Account() for group in GROUPS}
        self.call(commands.create_stream(KEY, {"name": "tasks"}))
        for group in GROUPS:
            self.call(commands.create_group(KEY, group, "0"))
        self.look()
        self.add(4)

    def call(self, command: commands.Command) -> Any:
        return self.raw.execute_command(*command)

    def calls(self, group: str) -> GroupCalls:
        return GroupCalls(Consumes("tasks", KEY, group, broadcast=True), "pod.1")

    def look(self) -> None:
        seen = msgspec.json.decode(
            self.call(commands.observe(KEY, GROUPS, trusts_lag=False)), type=StreamSeen
        )
        for group in GROUPS:
            before, now = self.totals.get(group), counters(seen, seen.groups[group], self.totals.get(group))
            if before is not None:
                self.accounts[group] = accumulate_account(self.accounts[group], before, now)
            self.totals[group] = now
            self.ledgers[group] = ledger_of(seen, group)

    def entries(self, key: str) -> dict[str, dict[str, str]]:
        return {
            entry.decode(): {name.decode(): value.decode() for name, value in fields.items()}
            for entry, fields in self.raw.xrange(key)
        }

    def unread(self, group: str) -> set[str]:
        (last,) = (g["last-delivered-id"] for g in self.raw.xinfo_groups(KEY) if g["name"] == group.encode())
        return {entry.decode() for entry, _ in self.raw.xrange(KEY, after(last.decode()))}

    def pending(self, key: str, group: str) -> list[tuple[str, int]]:
        return [
            (one["message_id"].decode(), one["times_delivered"])
            for one in self.raw.xpending_range(key, group, "-", "+", 1000)
        ]

    def held(self, group: str) -> list[Held]:
        main, retries = self.calls(group).sources
        fields = self.entries(retries.key)
        held = [Held(main, entry, n, (entry, "")) for entry, n in self.pending(KEY, group)]
        return held + [
            Held(retries, entry, n, _copy(fields[entry]["x"]))
            for entry, n in self.pending(retries.key, group)
        ]

    @rule(count=st.integers(1, 4))
    def add(self, count: int) -> None:
        messages = commands.message(b"x", ("receipts", KEYS.receipts)) * count
        reply = self.call(commands.add(KEYS, f"t{next(self.numbers)}", 0, 60_000, messages))
        for has in self.has.values():
            has.open.update(entry.decode() for entry in reply.split()[1:])

    @rule(group=st.sampled_from(GROUPS), count=st.integers(1, 6))
    def read(self, group: str, count: int) -> None:
        streams = {source.key: ">" for source in self.calls(group).sources}
        self.raw.xreadgroup(group, "pod.1", streams, count=count)

    def chosen(self, group: str, data: st.DataObject) -> list[Held]:
        self.read(group, 3)
        held = self.held(group)
        return held[: data.draw(st.integers(0, len(held)))]

    def take(self, group: str, one: Held) -> None:
        """It is finished: what the group has to get is less by it."""
        has = self.has[group]
        if one.source.retry:
            has.copies[one.copy] -= 1
        else:
            has.open.discard(one.id)

    @rule(group=st.sampled_from(GROUPS), data=st.data())
    def acknowledge(self, group: str, data: st.DataObject) -> None:
        calls = self.calls(group)
        for one in self.chosen(group, data):
            assert self.call(calls.settle(one.source, "acked", (one,))) == [DONE]
            self.take(group, one)
            self.has[group].acked += 1

    @rule(group=st.sampled_from(GROUPS), how=st.sampled_from(("now", "later", "release")), data=st.data())
    def fail(self, group: str, how: str, data: st.DataObject) -> None:
        calls = self.calls(group)
        for one in self.chosen(group, data):
            if how == "release":
                assert self.call(calls.release(one.source, "begun", (one,))) == [DONE]
            else:
                delay = HOUR if how == "later" else 0
                assert self.call(calls.retry(one, delay, one.counter, "Failed", "boom")) == DONE
            self.take(group, one)
            self.has[group].copies[one.copy] += 1

    @rule(group=st.sampled_from(GROUPS), data=st.data())
    def die(self, group: str, data: st.DataObject) -> None:
        for one in self.chosen(group, data):
            assert self.call(self.calls(group).dead_letter(one, 1, "Failed", "boom")) == DONE
            self.take(group, one)
            self.has[group].letters[one.copy[0]] += 1

    @rule(group=st.sampled_from(GROUPS))
    def sweep(self, group: str) -> None:
        self.raw.eval(MAKE_DUE, 1, KEYS.delay(group))
        self.call(self.calls(group).sweep(HOUR, 1, 0, now=True))

    @rule(trims=st.booleans())
    def clean(self, *, trims: bool) -> None:
        groups = [(group, HOUR, 0) for group in GROUPS]
        # the last one opens admission again
        for length in (1, 1000) if trims else (1000,):
            limits = (0, length, 0, "TrimAcknowledged", 1000)
            self.call(commands.janitor(KEY, limits, groups, trusts_lag=False, broadcast=True))

    @rule(group=st.sampled_from(GROUPS), data=st.data())
    def lose(self, group: str, data: st.DataObject) -> None:
        """Somebody deletes a retry, or acknowledges by hand what the group has not handled."""
        self.read(group, 1)
        if held := self.held(group):
            one = data.draw(st.sampled_from(held))
            self.raw.xack(one.source.key, group, one.id)
            if one.source.retry:
                self.raw.xdel(one.source.key, one.id)
            self.take(group, one)
            self.has[group].lost += 1

    @rule(group=st.sampled_from(GROUPS), is_dead=st.booleans(), data=st.data())
    def start(self, group: str, *, is_dead: bool, data: st.DataObject) -> None:
        run = Run(ReplayOf(KEY, group, replay_id(f"r{next(self.numbers)}", "0")), is_dead, frozenset(), "")
        if entries := sorted(self.entries(run.key), key=position):
            run.chosen = frozenset(data.draw(st.sets(st.sampled_from(entries))))
            run.until = entries[-1]
            self.runs.append(run)

    @precondition(lambda self: self.runs)
    @rule(
        data=st.data(),
        operator=st.sampled_from(OPERATORS),
        count=st.integers(1, 5),
        window=st.sampled_from((1, 3, 1000)),
        is_killed=st.booleans(),
    )
    def go_on(self, data: st.DataObject, operator: str, count: int, window: int, *, is_killed: bool) -> None:
        """An operator moves a page of a replay; it may be killed before it hears what became of it."""
        run = data.draw(st.sampled_from(self.runs))
        self.move(run, operator, count, window, is_killed=is_killed)

    def move(self, run: Run, operator: str, count: int, window: int, *, is_killed: bool = False) -> None:
        at = run.believed[operator]
        found = parse_page(self.call(page(run.key, after(at) if at else FIRST, run.until, count)))
        to = found.entries[-1].id if found.next is not None and found.entries else run.until
        if position(to) < position(at):
            return
        selected = [entry for entry in found.entries if entry.id in run.chosen]
        expected = self.expect(run, at, to, window, selected)
        pairs = [Selected(entry.id) for entry in selected]
        reply = parse_moved(
            self.call(replay(run.of, "dead" if run.is_dead else "stream", (at, to), window, pairs))
        )
        assert reply[:3] == expected
        if not is_killed:
            run.believed[operator] = reply.cursor

    def expect(
        self, run: Run, at: str, to: str, window: int, selected: list[PageEntry]
    ) -> tuple[int, str, int]:
        """What a call must reply; does the same to the model."""
        if at != run.cursor:
            return ELSEWHERE, run.cursor, 0
        has, length, moved, reached = self.has[run.of.group], self.raw.xlen(KEYS.retry(run.of.group)), 0, at
        for done, entry in enumerate(selected):
            if length + moved >= window:
                run.cursor = reached
                return (MOVED, reached, moved) if done else (NO_ROOM, at, 0)
            if (origin := self.origin(run, entry)) is not None:
                moved += 1
                run.moved[entry.id] += 1
                has.copies[origin, run.of.id] += 1
                has.letters[origin] -= run.is_dead
            run.matched += 1
            reached = entry.id
        run.cursor = to
        return MOVED, to, moved

    def origin(self, run: Run, entry: PageEntry) -> str | None:
        """The message that is moved with an entry; None if the group will get it anyway."""
        if run.is_dead:
            fields = dict(zip(entry.fields[::2], entry.fields[1::2], strict=True))
            return fields[b"origin"].decode()
        retrying = self.raw.hget(KEYS.parked(run.of.group), entry.id) == b"retrying"
        return None if entry.id in self.has[run.of.group].open or retrying else entry.id

    @invariant()
    def each_group_has_what_it_should(self) -> None:
        if not hasattr(self, "has"):
            return
        self.look()
        for group, has in self.has.items():
            main = self.unread(group) | {entry for entry, _ in self.pending(KEY, group)}
            assert main == has.open
            copies = Counter(_copy(fields["x"]) for fields in self.entries(KEYS.retry(group)).values())
            for member in self.raw.zrange(KEYS.delay(group), 0, -1):
                fields = msgspec.msgpack.decode(member)[2]
                copies[_copy(dict(zip(fields[::2], fields[1::2], strict=True))["x"])] += 1
            assert copies == +has.copies
            letters = self.entries(KEYS.dead_letters(group)).values()
            assert Counter(letter["origin"] for letter in letters) == +has.letters
            account = self.accounts[group]
            assert account.lost == self.totals[group].taken == has.lost
            assert account.acknowledged == has.acked
            replayed = sum(run.moved.total() for run in self.runs if run.of.group == group)
            assert account.replayed == replayed
            assert account.acknowledged <= account.sent + replayed
            ledger = self.ledgers[group]
            assert ledger is not None
            assert (ledger.acknowledged, ledger.dead, ledger.lost) == (has.acked, account.dead, has.lost)
            assert ledger.waiting == len(has.open) + has.copies.total()
            assert (ledger.added, ledger.discarded) == (account.sent + replayed, 0)

    @invariant()
    def replays_know_how_far_they_are(self) -> None:
        for run in getattr(self, "runs", ()):
            known = parse_progress(self.call(progress(run.of)))
            assert (known.cursor, known.matched, known.moved) == (run.cursor, run.matched, run.moved.total())
            assert known.moved + sum(known.skipped.values()) == known.matched
            assert set(run.moved.values()) <= {1}, "twice"
            left = sum(n for (_, of), n in self.has[run.of.group].copies.items() if of == run.of.id)
            assert known.handled + known.dead <= known.moved - left

    def teardown(self) -> None:
        """All goes on to its end: each selected message was moved or skipped for a reason, and handled."""
        if not hasattr(self, "has"):
            return
        for run in self.runs:
            while run.cursor != run.until:
                self.drain(run.of.group)
                for operator in OPERATORS:
                    self.move(run, operator, 100, 1000)
        for group, has in self.has.items():
            self.drain(group)
            assert not has.open
            assert not +has.copies
        self.each_group_has_what_it_should()
        self.replays_know_how_far_they_are()
        self.clear()

    def drain(self, group: str) -> None:
        self.sweep(group)
        self.read(group, 1000)
        calls = self.calls(group)
        for one in self.held(group):
            assert self.call(calls.settle(one.source, "acked", (one,))) == [DONE]
            self.take(group, one)
            self.has[group].acked += 1


def _copy(header: str) -> Copy:
    read = msgspec.json.decode(header)
    return read["origin"], read.get("replay", "")


def test_each_selected_message_is_delivered_once_more(
    stream: redis.Redis, raw: redis.Redis, server: Any
) -> None:
    class Here(Replaying):
        pass

    Here.raw, Here.clear = raw, staticmethod(server.clear)
    run_state_machine_as_test(Here, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))


@pytest.mark.parametrize("source", ["stream", "dead"])
def test_the_machine_itself_would_notice_a_message_that_is_moved_twice(
    stream: redis.Redis, raw: redis.Redis, server: Any, source: str
) -> None:
    machine = Replaying()
    machine.raw, machine.clear = raw, server.clear
    machine.begin()
    machine.read("coder", 4)
    calls = machine.calls("coder")
    for one in machine.held("coder"):
        if source == "dead":
            machine.call(calls.dead_letter(one, 1, "Failed", "boom"))
            machine.has["coder"].letters[one.id] += 1
        else:
            machine.call(calls.settle(one.source, "acked", (one,)))
            machine.has["coder"].acked += 1
        machine.take("coder", one)
    run = Run(ReplayOf(KEY, "coder", "twice.0"), source == "dead", frozenset(), "")
    entries = sorted(machine.entries(run.key), key=position)
    run.chosen, run.until = frozenset(entries), entries[-1]
    machine.runs.append(run)
    machine.move(run, "one", 100, 1000)
    machine.each_group_has_what_it_should()
    raw.hdel(KEYS.replay(run.of.id), "cursor")
    if source == "dead":
        raw.xadd(KEYS.dead_letters("coder"), {"m": "x", "origin": entries[0]})
    else:
        machine.call(replay(run.of, "stream", ("", run.until), 1000, [Selected(entries[0])]))
    with pytest.raises(AssertionError):
        machine.each_group_has_what_it_should()
