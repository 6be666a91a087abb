"""What agents do to their own messages is never told as a loss; what they do to others always is, and heals.

Hypothesis makes up the traffic on a real server, and what is done to it.
"""

from __future__ import annotations

from collections.abc import Callable
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
from agentstream.protocol.commands import DONE, Command, GroupCalls
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream_operator.plan.accounting import Account, GroupTotals, accumulate_account, counters
from agentstream_operator.plan.losses import ids_in_the_future, messages_lost
from agentstream_operator.plan.observed import StreamSeen
from support.entries import HOUR, KEY, Pending
from support.examples import examples

KEYS = StreamKeys(KEY)
GROUPS = ("coder", "tester")
PODS = ("a.1", "b.1")
LAST = "18446744073709551615-18446744073709551615"


class Traffic(RuleBasedStateMachine):
    """Two groups of a stream, each seen by the operator after every step."""

    admin: redis.Redis
    clear: Callable[[], None]

    def call(self, command: Command) -> Any:
        return self.admin.execute_command(*command)

    @initialize(trims=st.booleans())
    def begin(self, *, trims: bool) -> None:
        self.clear()
        self.trims = trims
        self.tokens = numbers()
        self.totals: dict[str, GroupTotals] = {}
        self.accounts = {group: Account() for group in GROUPS}
        self.copy: dict[bytes, bytes] = {}
        self.restore()
        self.look()

    def restore(self) -> None:
        """What the operator does about what is missing."""
        self.call(commands.create_stream(KEY, {"name": "tasks"}))
        for group in GROUPS:
            at = self.admin.hget(KEYS.meta, f"checkpoint:{group}")
            self.call(commands.create_group(KEY, group, at or "0"))

    def look(self) -> StreamSeen:
        """The operator observes."""
        seen = msgspec.json.decode(
            self.call(commands.observe(KEY, GROUPS, trusts_lag=False)), type=StreamSeen
        )
        for group in GROUPS:
            before = self.totals.get(group)
            self.totals[group] = counters(seen, seen.groups[group], before, trims_oldest=self.trims)
            if before is not None:
                account = accumulate_account(self.accounts[group], before, self.totals[group])
                self.accounts[group] = account
        return seen

    def told(self, group: str) -> bool:
        """Whether an operator that has seen nothing before says that the group lost messages."""
        reply = self.call(commands.observe(KEY, GROUPS, trusts_lag=False))
        seen = msgspec.json.decode(reply, type=StreamSeen)
        totals = counters(seen, seen.groups[group], trims_oldest=self.trims)
        return messages_lost(seen, seen.groups[group], totals).status == "True"

    def status(self, group: str) -> str:
        """What an operator says that has been there all the time."""
        seen = self.look()
        return messages_lost(seen, seen.groups[group], self.totals[group]).status

    def unread(self, group: str) -> list[str]:
        at = next(g["last-delivered-id"] for g in self.admin.xinfo_groups(KEY) if g["name"] == group)
        return [] if at == LAST else [entry for entry, _ in self.admin.xrange(KEY, f"({at}")]

    @rule(count=st.integers(1, 5), raw=st.booleans())
    def send(self, count: int, *, raw: bool) -> None:
        if raw:
            for _ in range(count):
                self.admin.xadd(KEY, {"m": "x"})
        else:
            self.call(commands.add(KEYS, f"t{next(self.tokens)}", 0, 60_000, commands.message(b"x") * count))

    @rule(group=st.sampled_from(GROUPS), pod=st.sampled_from(PODS), count=st.integers(1, 5))
    def read(self, group: str, pod: str, count: int) -> None:
        calls = GroupCalls(Consumes("tasks", KEY, group), pod)
        self.admin.xreadgroup(group, pod, {source.key: ">" for source in calls.sources}, count=count)

    @rule(
        group=st.sampled_from(GROUPS),
        outcome=st.sampled_from(["acked", "skipped", "retry", "retry later", "dead", "release"]),
        share=st.floats(0, 1),
    )
    def settle(self, group: str, outcome: str, share: float) -> None:
        for source in GroupCalls(Consumes("tasks", KEY, group), PODS[0]).sources:
            held = self.admin.xpending_range(source.key, group, "-", "+", 100)
            for p in held[: round(share * len(held))]:
                calls = GroupCalls(Consumes("tasks", KEY, group), p["consumer"])
                one = Pending(p["message_id"], source, p["times_delivered"])
                if outcome in {"acked", "skipped"}:
                    self.call(calls.settle(source, outcome, (one,)))
                elif outcome == "dead":
                    self.call(calls.dead_letter(one, 1, "Failed", "boom"))
                elif outcome == "release":
                    self.call(calls.release(source, "begun", (one,)))
                else:
                    delay = HOUR if outcome == "retry later" else 0
                    self.call(calls.retry(one, delay, 1, "Failed", "boom"))

    @rule(group=st.sampled_from(GROUPS), pod=st.sampled_from(PODS), killed=st.booleans())
    def sweep(self, group: str, pod: str, *, killed: bool) -> None:
        if killed:
            for retries in (False, True):
                self.call(commands.release_pod(KEY, group, ("a", None), "-", retries=retries, for_good=False))
        self.call(GroupCalls(Consumes("tasks", KEY, group), pod).sweep(0, 1, 100, now=True))

    @rule(full=st.booleans())
    def clean(self, *, full: bool) -> None:
        limits = (HOUR, 3 if full else 1000, 0, "TrimOldest" if self.trims else "TrimAcknowledged", 1000)
        groups = [(group, HOUR, HOUR) for group in GROUPS]
        self.call(commands.janitor(KEY, limits, groups, trusts_lag=False, broadcast=False))

    @rule(flush=st.booleans())
    def lose_everything(self, *, flush: bool) -> None:
        if flush:
            self.admin.flushall()
        else:
            self.admin.delete(KEY)
        self.look()
        self.restore()

    @rule()
    def replicate(self) -> None:
        """A replica has everything until now."""
        self.copy = {key: self.raw.dump(key) for key in self.raw.scan_iter()}

    @precondition(lambda self: self.copy)
    @rule()
    def fail_over(self) -> None:
        """That replica becomes the primary: what came later is gone."""
        self.admin.flushall()
        for key, value in self.copy.items():
            self.raw.restore(key, 0, value)
        # a replica does not go back to where it was before
        self.copy = {}

    @rule(group=st.sampled_from(GROUPS))
    def replay(self, group: str) -> None:
        """An administrator moves a group back, and the janitor comes by."""
        self.admin.xgroup_setid(KEY, group, "0-0")
        for p in self.admin.xpending_range(KEY, group, "-", "+", 1000):
            self.admin.xack(KEY, group, p["message_id"])
        self.clean(full=False)

    @rule(
        group=st.sampled_from(GROUPS),
        how=st.sampled_from(["maxlen", "noack", "lastid", "end", "acked", "deleted"]),
        again=st.booleans(),
    )
    def attack(self, group: str, how: str, *, again: bool) -> None:
        unread, before = self.unread(group), self.accounts[group].lost
        if not unread:
            return
        match how:
            case "maxlen":
                # an agent that may add has no other way to trim
                self.admin.execute_command("XADD", KEY, "MAXLEN", "=", 0, "*", "f", "v")
            case "noack":
                self.admin.xreadgroup(group, "x", {KEY: ">"}, noack=True)
            case "lastid" | "end":
                to = LAST if how == "lastid" else unread[-1]
                self.admin.execute_command("XCLAIM", KEY, group, "x", 0, "0-1", "LASTID", to)
            case "acked":
                self.admin.xreadgroup(group, "x", {KEY: ">"})
                self.admin.xack(KEY, group, *unread)
            case _:
                self.admin.xdel(KEY, *unread)
        assert self.told(group), how
        self.look()
        assert self.accounts[group].lost >= before + len(unread)
        for one in GROUPS:
            # what was pending and trimmed is found by sweeping
            self.sweep(one, PODS[1], killed=True)
        self.clean(full=False)
        self.look()
        assert self.told(group), how
        kept = {entry for entry, _ in self.admin.xrange(KEY)} & set(unread)
        assert self.call(commands.heal_group(KEY, group, again=again)) == DONE
        assert not again or kept <= set(self.unread(group)), "delivered again"
        for other in filter(self.told, GROUPS):
            self.call(commands.heal_group(KEY, other, again=again))

    @invariant()
    def nothing_is_told(self) -> None:
        seen = self.look()
        assert ids_in_the_future(seen).status == "False"
        for group in GROUPS:
            assert not self.told(group), group


@pytest.fixture
def traffic(admin: redis.Redis, server: Any) -> type[Traffic]:
    """The machine on this server."""

    class OnThisServer(Traffic):
        raw = redis.Redis(port=server.port)

    OnThisServer.admin, OnThisServer.clear = admin, staticmethod(admin.flushall)
    return OnThisServer


def test_only_what_others_take_is_told_and_it_heals(traffic: type[Traffic]) -> None:
    run_state_machine_as_test(traffic, settings=settings(max_examples=examples(40), stateful_step_count=40))


def test_a_failover_that_loses_the_last_writes_loses_what_was_sent_meanwhile(traffic: type[Traffic]) -> None:
    state = traffic()
    state.begin(trims=False)
    state.send(20, raw=False)
    for group in GROUPS:
        state.read(group, PODS[0], 20)
        state.settle(group, "acked", 0.5)
    state.look()
    state.replicate()
    state.send(5, raw=True)
    for group in GROUPS:
        state.settle(group, "acked", 1)
    state.look()
    before = dict(state.accounts)
    state.fail_over()
    state.nothing_is_told()
    for group in GROUPS:
        known, account = before[group], state.accounts[group]
        assert (known.sent, known.acknowledged, known.lost) == (25, 20, 0)
        assert (account.sent, account.acknowledged, account.lost) == (25, 20, 5), group


def test_a_flood_hides_no_loss_that_was_told(traffic: type[Traffic]) -> None:
    """So many messages are unread that their number is an estimate."""
    state = traffic()
    state.begin(trims=False)
    state.send(10, raw=False)
    state.read("coder", PODS[0], 1)
    state.admin.xreadgroup("coder", "x", {KEY: ">"}, count=5, noack=True)
    assert state.status("coder") == "True"
    state.clean(full=False)
    with state.admin.pipeline(transaction=False) as batch:
        for _ in range(1500):
            batch.xadd(KEY, {"m": "x"})
        batch.execute()
    seen = state.look()
    assert not seen.groups["coder"].exact
    assert state.status("coder") == "True"
    # another pass of the janitor forgets nothing that is still there
    state.clean(full=False)
    assert state.call(commands.heal_group(KEY, "coder", again=True)) == DONE
    assert len(state.unread("coder")) == 1510
    assert state.status("coder") == "False"
