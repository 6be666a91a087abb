"""Counters and receipts say what became of messages, whatever is done to them and to the server's data.

Hypothesis makes up what happens, one step after the other, on a real server. The truth is counted from the
replies to what was done and from where entries are; the counters have to agree with it after every step.
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
    rule,
    run_state_machine_as_test,
)

from agentstream.protocol import commands
from agentstream.protocol.commands import DONE, Command, GroupCalls
from agentstream.protocol.entry import Source
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream_operator.plan.accounting import Account, GroupTotals, accumulate_account, counters
from agentstream_operator.plan.observed import StreamSeen
from support.entries import HOUR, KEY
from support.examples import examples

EXAMPLES = examples(50)
STEPS = int(os.environ.get("AGENTSTREAM_STEPS", "40"))
KEYS = StreamKeys(KEY)
GROUPS = ("coder", "tester")
PODS = ("a.1", "b.1")
MAKE_DUE = "for _, m in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 1, m) end"
OUTCOMES = ("acked", "skipped", "retry", "retry later", "dead", "release", "release")


@dataclass
class Held:
    """A pending entry, as `XPENDING` shows it."""

    source: Source
    id: str
    consumer: str
    counter: int
    after: str | None = None


@dataclass
class Truth:
    """What was done to the messages of a group."""

    created: int = 0
    """Entries of the stream that the group got, and retries."""
    settled: int = 0
    done: Counter[str] = field(default_factory=Counter)
    acknowledged: set[str] = field(default_factory=set)
    """The broadcasts that it acknowledged or skipped."""


class Losses(RuleBasedStateMachine):
    """Two groups of a broadcast stream."""

    admin: redis.Redis
    clear: Callable[[], None]

    @initialize()
    def begin(self) -> None:
        self.clear()
        self.tokens = numbers()
        self.sent: list[str] = []
        self.gone: set[str] = set()
        self.truths = {group: Truth() for group in GROUPS}
        self.totals: dict[str, GroupTotals] = {}
        self.accounts = {group: Account() for group in GROUPS}
        self.heal()
        self.look()
        self.send(5)
        for group in GROUPS:
            self.read(group, PODS[0], 4)

    def call(self, command: Command) -> Any:
        return self.admin.execute_command(*command)

    def heal(self) -> None:
        """What the operator does about what is missing."""
        self.call(commands.create_stream(KEY, {"name": "tasks"}))
        for group in GROUPS:
            at = self.admin.hget(KEYS.meta, f"checkpoint:{group}")
            self.call(commands.create_group(KEY, group, at or "0"))

    def look(self) -> None:
        """The operator observes."""
        reply = self.call(commands.observe(KEY, GROUPS, trusts_lag=False))
        seen = msgspec.json.decode(reply, type=StreamSeen)
        for group in GROUPS:
            before = self.totals.get(group)
            now = counters(seen, seen.groups[group], before)
            if before is not None:
                self.accounts[group] = accumulate_account(self.accounts[group], before, now)
            self.totals[group] = now

    def calls(self, group: str, consumer: str = PODS[0]) -> GroupCalls:
        return GroupCalls(Consumes("tasks", KEY, group, broadcast=True), consumer)

    def held(self, group: str) -> list[Held]:
        return [
            Held(source, p["message_id"], p["consumer"], p["times_delivered"])
            for source in self.calls(group).sources
            for p in self.admin.xpending_range(source.key, group, "-", "+", 1000)
        ]

    def unread(self, group: str) -> list[str]:
        last = next(
            (g["last-delivered-id"] for g in self.admin.xinfo_groups(KEY) if g["name"] == group), None
        )
        return [] if last is None else [entry for entry, _ in self.admin.xrange(KEY, f"({last}")]

    def retries(self, group: str) -> int:
        return self.admin.xlen(KEYS.retry(group)) + self.admin.zcard(KEYS.delay(group))

    def places(self, group: str) -> int:
        """How many entries of a group are anywhere on the server."""
        pending = sum(1 for one in self.held(group) if not one.source.retry)
        return len(self.unread(group)) + pending + self.retries(group)

    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        messages = commands.message(b"x", ("receipts", KEYS.receipts)) * count
        reply = self.call(commands.add(KEYS, f"t{next(self.tokens)}", 0, 60_000, messages))
        ids = reply.split()[1:]
        assert all("-" in entry for entry in ids)
        self.sent += ids
        for truth in self.truths.values():
            truth.created += count

    @rule(group=st.sampled_from(GROUPS), consumer=st.sampled_from(PODS), count=st.integers(1, 5))
    def read(self, group: str, consumer: str, count: int) -> None:
        calls = self.calls(group)
        where = {source.key: ">" for source in calls.sources}
        self.admin.xreadgroup(group, consumer, where, count=count)

    def start(self, group: str, _consumer: str, data: st.DataObject) -> None:
        if held := self.held(group):
            one = data.draw(st.sampled_from(held))
            self.call(self.calls(group, one.consumer).begin(one.source, (one,)))

    @rule(group=st.sampled_from(GROUPS), outcome=st.sampled_from(OUTCOMES), data=st.data())
    def settle(self, group: str, outcome: str, data: st.DataObject) -> None:
        self.read(group, PODS[0], 3)
        held = self.held(group)
        for one in held[: data.draw(st.integers(0, len(held)))]:
            self.settle_one(group, outcome, one)

    def settle_one(self, group: str, outcome: str, one: Held) -> None:
        calls, truth = self.calls(group, one.consumer), self.truths[group]
        fields = self.admin.xrange(one.source.key, one.id, one.id)
        origin = msgspec.json.decode(fields[0][1].get("x", "{}")).get("origin") if fields else None
        before = self.retries(group)
        if outcome in {"acked", "skipped"}:
            (code,) = self.call(calls.settle(one.source, outcome, (one,)))
        elif outcome == "dead":
            code = self.call(calls.dead_letter(one, 1, "Failed", "boom"))
        elif outcome == "release":
            (code,) = self.call(calls.release(one.source, "begun", (one,)))
        else:
            code = self.call(calls.retry(one, HOUR if outcome == "retry later" else 0, 1, "Failed", "boom"))
        if code != DONE:
            return
        truth.settled += 1
        truth.done[outcome] += 1
        if outcome in {"acked", "skipped"} and (fields or not one.source.retry):
            truth.acknowledged.add(origin or one.id)
        elif outcome in {"retry", "retry later", "release"}:
            # what a group that was made again retries may be lost, although it was acknowledged before
            truth.acknowledged.discard(origin or one.id)
            # a retry that was there already is the same one
            truth.created += self.retries(group) - before + one.source.retry

    def hand_back(self, group: str, consumer: str, data: st.DataObject) -> None:
        calls = self.calls(group, consumer)
        mine = [one for one in self.held(group) if one.consumer == consumer and not one.source.retry]
        if mine:
            self.call(calls.release(calls.main, data.draw(st.sampled_from(["delivered", "claimed"])), mine))

    def renew(self, group: str, consumer: str, _data: st.DataObject) -> None:
        calls = self.calls(group, consumer)
        for source in calls.sources:
            if mine := [one for one in self.held(group) if one.consumer == consumer and one.source == source]:
                self.call(calls.renew(source, 1000, mine))

    @rule(group=st.sampled_from(GROUPS), consumer=st.sampled_from(PODS), due=st.booleans())
    def sweep(self, group: str, consumer: str, *, due: bool) -> None:
        if due:
            self.admin.eval(MAKE_DUE, 1, KEYS.delay(group))
        self.call(self.calls(group, consumer).sweep(0, 1, 100, now=True))

    def free_what_a_pod_held(self, group: str, consumer: str, _data: st.DataObject | None = None) -> None:
        for retries in (False, True):
            self.call(
                commands.release_pod(KEY, group, (consumer[0], None), "-", retries=retries, for_good=False)
            )

    @rule(full=st.booleans())
    def clean(self, *, full: bool) -> None:
        limits = (HOUR, 3 if full else 1000, 0, "TrimOldest" if full else "TrimAcknowledged", 1000)
        groups = [(group, HOUR, HOUR) for group in GROUPS]
        self.call(commands.janitor(KEY, limits, groups, trusts_lag=False, broadcast=True))

    def delete_entry(self, data: st.DataObject) -> None:
        if entries := [entry for entry, _ in self.admin.xrange(KEY)]:
            self.admin.xdel(KEY, data.draw(st.sampled_from(entries)))

    def trim(self, keep: int) -> None:
        self.admin.xtrim(KEY, maxlen=keep, approximate=False)

    def delete_retry(self, group: str, data: st.DataObject) -> None:
        if entries := [entry for entry, _ in self.admin.xrange(KEYS.retry(group))]:
            self.admin.xdel(KEYS.retry(group), data.draw(st.sampled_from(entries)))

    def delete_delayed(self, group: str) -> None:
        self.admin.delete(KEYS.delay(group))

    def delete_retry_stream(self, group: str) -> None:
        self.admin.delete(KEYS.retry(group))
        self.heal()

    def delete_stream(self, _group: str = "") -> None:
        self.admin.delete(KEY)
        self.look()
        self.heal()

    def flush(self, _group: str = "") -> None:
        self.admin.flushall()
        self.look()
        self.heal()
        self.gone |= set(self.sent)

    def is_deleted(self, entry: str) -> bool:
        return not self.admin.xrange(KEY, entry, entry)

    def destroy_group(self, group: str) -> None:
        held = [one.id for one in self.held(group) if not one.source.retry]
        if any(map(self.is_deleted, held)):
            # what is pending and deleted leaves no trace when its group goes
            for consumer in PODS:
                self.free_what_a_pod_held(group, consumer)
            held = [one.id for one in self.held(group) if not one.source.retry]
        before = {*self.unread(group), *held}
        self.admin.xgroup_destroy(KEY, group)
        self.look()
        self.heal()
        after = self.unread(group)
        assert before <= set(after), "what was not settled is delivered again"
        self.truths[group].created += len(after) - len(before)

    @rule(group=st.sampled_from(GROUPS), consumer=st.sampled_from(PODS), data=st.data())
    def hold(self, group: str, consumer: str, data: st.DataObject) -> None:
        how = data.draw(st.sampled_from([self.start, self.hand_back, self.renew, self.free_what_a_pod_held]))
        how(group, consumer, data)

    @rule(data=st.data())
    def lose_entries(self, data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            self.delete_entry(data)
        else:
            self.trim(data.draw(st.integers(0, 5)))

    @rule(group=st.sampled_from(GROUPS), data=st.data())
    def lose_retries(self, group: str, data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            self.delete_retry(group, data)
        else:
            data.draw(st.sampled_from([self.delete_delayed, self.delete_retry_stream]))(group)

    @rule(group=st.sampled_from(GROUPS), data=st.data())
    def destroy(self, group: str, data: st.DataObject) -> None:
        data.draw(st.sampled_from([self.destroy_group, self.delete_stream, self.flush]))(group)

    @invariant()
    def counters_are_the_truth(self) -> None:
        self.look()
        for group, truth in self.truths.items():
            account, places = self.accounts[group], self.places(group)
            assert account.lost == truth.created - truth.settled - places, group
            assert self.totals[group].unsettled == places
            assert account.sent == len(self.sent)
            done = truth.done
            assert (account.acknowledged, account.skipped) == (done["acked"], done["skipped"])
            assert (account.retried, account.dead) == (done["retry"] + done["retry later"], done["dead"])

    @invariant()
    def receipts_are_the_truth(self) -> None:
        if not self.sent:
            return
        states = iter(self.call(commands.receipt(KEYS, GROUPS, self.sent)))
        for entry in self.sent:
            for group in GROUPS:
                state = next(states)
                acknowledged = entry in self.truths[group].acknowledged and entry not in self.gone
                assert state != "acknowledged" or acknowledged, (entry, group)
                assert not acknowledged or state in {"acknowledged", "retrying", "dead"}, (
                    entry,
                    group,
                    state,
                )
                assert entry not in self.gone or state == "missing", (entry, group, state)


@pytest.fixture
def losses(admin: redis.Redis) -> type[Losses]:
    """The machine on this server."""

    class OnThisServer(Losses):
        pass

    OnThisServer.admin, OnThisServer.clear = admin, staticmethod(admin.flushall)
    return OnThisServer


def test_counters_agree_with_the_truth_whatever_happens(losses: type[Losses]) -> None:
    run_state_machine_as_test(losses, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))


def handled(state: Losses, outcome: str, count: int, group: str = "coder") -> None:
    """A group reads so many messages and settles them in one way."""
    state.read(group, PODS[0], count)
    for one in state.held(group):
        state.settle_one(group, outcome, one)


@pytest.fixture
def ten(losses: type[Losses]) -> Losses:
    """Ten messages that nobody has read, after five that all acknowledged."""
    state = losses()
    state.begin()
    for group in GROUPS:
        handled(state, "acked", 5, group)
    state.send(10)
    state.counters_are_the_truth()
    return state


def test_a_release_hides_no_loss(ten: Losses) -> None:
    handled(ten, "release", 10)
    handled(ten, "acked", 10)
    ten.counters_are_the_truth()
    ten.send(10)
    handled(ten, "retry later", 10)
    ten.delete_delayed("coder")
    ten.counters_are_the_truth()
    assert ten.accounts["coder"].lost == 10


def test_a_group_that_is_made_again_lost_no_delayed_retry(ten: Losses) -> None:
    handled(ten, "retry later", 10)
    ten.destroy_group("coder")
    handled(ten, "retry later", 10)
    ten.counters_are_the_truth()
    assert ten.accounts["coder"].lost == 0


def test_what_was_acknowledged_before_a_stream_was_deleted_counts_once(ten: Losses) -> None:
    handled(ten, "acked", 10)
    ten.counters_are_the_truth()
    ten.send(5)
    ten.look()
    ten.delete_stream()
    ten.send(5)
    handled(ten, "acked", 5)
    ten.counters_are_the_truth()
    account = ten.accounts["coder"]
    assert (account.sent, account.acknowledged, account.lost) == (25, 20, 5)


@pytest.mark.parametrize("lose", [Losses.delete_stream, Losses.flush])
def test_what_was_on_a_stream_that_is_gone_is_lost(ten: Losses, lose: Callable[[Losses], None]) -> None:
    handled(ten, "acked", 4)
    handled(ten, "retry later", 1)
    ten.counters_are_the_truth()
    lose(ten)
    ten.counters_are_the_truth()
    account = ten.accounts["coder"]
    assert (account.sent, account.acknowledged) == (15, 9)
    assert account.lost == (5 if lose is Losses.delete_stream else 6)


def test_what_is_deleted_unread_counts_before_the_group_reads_on(ten: Losses) -> None:
    handled(ten, "acked", 2)
    ten.trim(3)
    ten.counters_are_the_truth()
    assert [ten.accounts[group].lost for group in GROUPS] == [5, 7]
    ten.destroy_group("coder")
    ten.counters_are_the_truth()
    assert ten.accounts["coder"].lost == 5
