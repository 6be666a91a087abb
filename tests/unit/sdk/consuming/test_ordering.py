"""One entry of a key at a time, in order, and none that waits for nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentstream.consuming.hold import Hold
from agentstream.consuming.ordering import KeyOrder
from agentstream.protocol.entry import NOTHING, parse_entry, position
from agentstream.transport.retry import Backoff
from support.holds import MAIN, RETRIES, a_hold, settle


def entry(entry_id: str, after: str = NOTHING, key: str = "k") -> Hold:
    fields = [b"m", msgspec.json.encode({"key": key}), b"p", after.encode()]
    return a_hold(entry_id, fields)


def retried(number: int, origin: str, after: str = NOTHING, key: str = "k") -> Hold:
    header = msgspec.json.encode({"origin": origin, "attempts": 1})
    fields = [b"m", msgspec.json.encode({"key": key}), b"p", after.encode(), b"x", header]
    return a_hold(f"{number}-0", fields, source=RETRIES)


def replayed(number: int, origin: str, after: str = NOTHING, key: str = "k") -> Hold:
    header = msgspec.json.encode({"origin": origin, "attempts": 0, "replay": "again.01234567"})
    fields = [b"m", msgspec.json.encode({"key": key}), b"p", after.encode(), b"x", header]
    return a_hold(f"{number}-0", fields, source=RETRIES)


def made(*entries: Hold) -> KeyOrder:
    key_order = KeyOrder(lambda: Backoff(1.0, 4.0, lambda: 1.0))
    for one in entries:
        key_order.put(one)
    return key_order


def test_the_first_of_a_key_goes_at_once_and_the_next_when_it_is_finished() -> None:
    first, second = entry("1-0"), entry("2-0", "1-0")
    key_order = made()
    assert key_order.put(first)
    assert not key_order.put(second)
    assert (len(key_order), key_order.ask_at) == (1, None)
    settle(first)
    assert key_order.leave(first) is second
    assert len(key_order) == 0


def test_what_comes_after_an_entry_that_was_put_off_asks_for_it() -> None:
    first, second = entry("1-0"), entry("2-0", "1-0")
    key_order = made(first, second)
    assert key_order.leave(first) is None
    assert key_order.due(0) == [second]
    assert not key_order.answered(second, 10.0, finished=False)
    assert (key_order.ask_at, key_order.due(10.9), key_order.due(11.0)) == (11.0, [], [second])
    assert not key_order.answered(second, 11.0, finished=False)
    assert key_order.ask_at == 13.0
    assert key_order.answered(second, 13.0, finished=True)
    assert (len(key_order), key_order.ask_at) == (0, None)


def test_what_is_replayed_asks_for_what_comes_before_it_in_the_replay() -> None:
    first, second, third = replayed(9, "1-0"), replayed(10, "3-0", "1-0"), replayed(11, "5-0", "3-0")
    key_order = made(second, third)
    assert key_order.due(0) == [second]
    assert key_order.put(first)
    assert key_order.due(0) == []
    settle(first)
    assert key_order.leave(first) is second
    assert key_order.leave(second) is None, "it is tried again"
    assert key_order.due(0) == [third]


def test_keys_that_have_waited_for_half_of_their_time_ask_with_others() -> None:
    one, two = entry("2-0", "1-0"), entry("4-0", "3-0", key="other")
    key_order = made(one, two)
    key_order.answered(one, 0.0, finished=False)
    key_order.answered(two, 0.4, finished=False)
    assert key_order.due(0.9) == []
    assert key_order.due(1.0) == [one, two]
    key_order.answered(two, 1.0, finished=False)
    assert key_order.due(1.4) == [one]


def test_only_the_oldest_of_a_key_asks() -> None:
    key_order = made(entry("5-0", "4-0"), entry("3-0", "2-0"), entry("3-0", "2-0", key="other"))
    assert [one.id for one in key_order.due(0)] == ["3-0", "3-0"]


def test_a_retry_goes_before_what_waits_and_asks_nothing() -> None:
    again, second = retried(9, "1-0"), entry("2-0", "1-0")
    key_order = made(second)
    assert key_order.put(again)
    assert key_order.ask_at is None
    assert not key_order.answered(second, 0, finished=True)
    settle(again)
    assert key_order.leave(again) is second


def test_a_retry_waits_for_what_is_in_hand() -> None:
    second, again = entry("2-0"), retried(9, "1-0")
    key_order = made(second)
    assert not key_order.put(again)
    assert key_order.leave(second) is again


def test_what_comes_after_its_predecessor_was_finished_here_asks_whether_another_one_has_that_again() -> None:
    first, second = entry("1-0"), entry("2-0", "1-0")
    key_order = made(first)
    settle(first)
    assert key_order.leave(first) is None
    assert not key_order.put(second)
    assert key_order.due(0) == [second]
    assert key_order.answered(second, 0.0, finished=True)


def test_what_waits_can_be_lost_and_what_is_not_here_can_leave() -> None:
    first, second, third = entry("1-0"), entry("2-0", "1-0"), entry("3-0", "2-0")
    key_order = made(first, second, third)
    assert key_order.leave(third) is None
    assert key_order.leave(third) is None
    assert len(key_order) == 1
    assert key_order.leave(second) is None
    assert key_order.leave(first) is None
    assert key_order.due(0) == []


def test_whoever_is_next_is_told_when_the_one_before_is_lost() -> None:
    second, third = entry("2-0", "1-0"), entry("3-0")
    key_order = made(second, third)
    assert key_order.leave(second) is third


def test_clearing_hands_out_what_waits_and_leaves_what_is_in_hand() -> None:
    first, second, alone = entry("1-0"), entry("2-0", "1-0"), entry("2-0", "1-0", key="other")
    key_order = made(first, second, alone)
    assert key_order.clear() == [second, alone]
    assert (len(key_order), key_order.ask_at) == (0, None)
    assert not key_order.put(third := entry("3-0", "1-0"))
    settle(first)
    assert key_order.leave(first) is third


@pytest.mark.parametrize("after", ["x", "", "9-0", "5-0", "0-0", "5", "4-9-1", "99999999999999999999999-0"])
def test_a_predecessor_that_cannot_be_one_is_none(after: str) -> None:
    assert entry("5-0", after).after == NOTHING


def test_predecessor_and_key_are_read_off_the_entry() -> None:
    assert entry("5-10", "5-9").after == "5-9"
    assert parse_entry(MAIN, "5-0", [b"m", b"{}"]).after is None
    assert retried(9, "5-0", "4-0").after == "4-0"
    assert entry("1-0", key="a").entry.key == "a"
    for body in (b"{}", b"{", b'{"key":1}', b"[" * 10_000):
        assert parse_entry(MAIN, "1-0", [b"m", body]).key == ""
    assert parse_entry(MAIN, "1-0", []).key == ""


def test_ids_are_ordered_as_numbers() -> None:
    assert sorted(["10-0", "2-0", "1-10", "1-9", "x"], key=position) == ["x", "1-9", "1-10", "2-0", "10-0"]


class OneConsumerAmongOthers(RuleBasedStateMachine):
    """A process that holds some of a group's entries, while others handle the rest."""

    @initialize()
    def start(self) -> None:
        self.key_order = made()
        self.now = 0.0
        self.clock = 0
        self.last: dict[str, str] = {}
        self.after: dict[str, tuple[str, str]] = {}
        self.finished = {NOTHING}
        self.elsewhere: set[str] = set()
        self.defer: set[str] = set()
        self.mine: list[Hold] = []
        self.in_hand: list[Hold] = []

    def _came(self, one: Hold, *, its_turn: bool) -> None:
        self.mine.append(one)
        if its_turn:
            self._took(one)

    def _took(self, one: Hold) -> None:
        assert one.after in self.finished
        assert one.entry.key not in {other.entry.key for other in self.in_hand}
        self.in_hand.append(one)

    def _left(self, one: Hold) -> None:
        self.mine.remove(one)
        if one in self.in_hand:
            self.in_hand.remove(one)
        following = self.key_order.leave(one)
        if following is not None:
            self._took(following)

    @rule(key=st.sampled_from("ab"), here=st.booleans())
    def deliver(self, key: str, here: bool) -> None:  # noqa: FBT001 - drawn
        self.clock += 1
        new = entry(f"{self.clock}-0", self.last.get(key, NOTHING), key)
        self.after[new.id] = (new.after or "", key)
        self.last[key] = new.id
        if here:
            self._came(new, its_turn=self.key_order.put(new))
        else:
            self.elsewhere.add(new.id)

    @rule(data=st.data(), finished=st.booleans())
    def settle(self, data: st.DataObject, finished: bool) -> None:  # noqa: FBT001 - drawn
        if self.in_hand:
            one = data.draw(st.sampled_from(self.in_hand))
            settle(one, is_finished=finished)
            (self.finished if finished else self.defer).add(one.entry.origin)
            self._left(one)

    @rule(data=st.data(), finished=st.booleans())
    def others_settle(self, data: st.DataObject, finished: bool) -> None:  # noqa: FBT001 - drawn
        if possible := sorted(e for e in self.elsewhere if self.after[e][0] in self.finished):
            one = data.draw(st.sampled_from(possible))
            self.elsewhere.remove(one)
            (self.finished if finished else self.defer).add(one)

    @rule(data=st.data(), here=st.booleans())
    def try_again(self, data: st.DataObject, here: bool) -> None:  # noqa: FBT001 - drawn
        if self.defer:
            origin = data.draw(st.sampled_from(sorted(self.defer)))
            self.defer.remove(origin)
            after, key = self.after[origin]
            if here:
                self.clock += 1
                again = retried(self.clock, origin, after, key)
                self._came(again, its_turn=self.key_order.put(again))
            else:
                self.elsewhere.add(origin)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.mine:
            one = data.draw(st.sampled_from(self.mine))
            self.elsewhere.add(one.entry.origin)
            self._left(one)

    @rule(seconds=st.floats(0, 5))
    def ask(self, seconds: float) -> None:
        self.now += seconds
        for one in self.key_order.due(self.now):
            if self.key_order.answered(one, self.now, finished=one.after in self.finished):
                self._took(one)

    @invariant()
    def nothing_waits_in_vain(self) -> None:
        busy = {one.entry.key for one in self.in_hand}
        waiting = [one for one in self.mine if one not in self.in_hand]
        assert len(self.key_order) == len(waiting)
        oldest: dict[str, Hold] = {}
        for one in sorted(waiting, key=lambda one: position(one.entry.origin)):
            oldest.setdefault(one.entry.key, one)
        asking = {one for key, one in oldest.items() if key not in busy}
        assert set(self.key_order.due(float("inf"))) == asking


TestOneConsumerAmongOthers = OneConsumerAmongOthers.TestCase
