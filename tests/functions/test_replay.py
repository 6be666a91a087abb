"""A page of a replay is moved once, whoever asks for it and how often."""

from __future__ import annotations

import json

import pytest
import redis

from agentstream.protocol import commands
from agentstream.protocol.keys import replay_id
from agentstream.protocol.replaying import (
    ELSEWHERE,
    MOVED,
    NO_ROOM,
    ReplayOf,
    ReplayProgress,
    Selected,
    drop,
    end,
    parse_moved,
    progress,
    replay,
)
from support.entries import HOUR, KEY, fill
from support.replays import AGAIN, CALLS, KEYS, LATER, PLAIN, Replays


def test_a_page_is_moved_and_noted_in_one_call(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 5)
    replays.handle(5)
    before = stream.time()[0] * 1000
    page = replays.move([ids[0], Selected(ids[1], "expired"), ids[3]], to=ids[4])
    assert page == (MOVED, ids[4], 2, 2)
    first, second = replays.retries()
    for (body, header), entry in ((first, ids[0]), (second, ids[3])):
        assert body == "x"
        assert header.pop("fence") >= before
        assert header == {"origin": entry, "attempts": 0, "replay": "again.01234567"}
    assert replays.progress() == ReplayProgress(ids[4], 3, 2, {"expired": 1}, 0, 0, 2)
    assert stream.ttl(KEYS.replay(AGAIN.id)) > 29 * 86400
    assert stream.xlen(KEY) == 5
    assert replays.stats()["replayed"] == "2"


def test_a_call_that_is_repeated_moves_nothing(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 4)
    replays.handle(4)
    assert replays.move(ids[:2]) == (MOVED, ids[1], 2, 2)
    for _ in range(2):
        assert replays.move(ids[:2]) == (ELSEWHERE, ids[1], 0, 2)
    assert replays.move(ids[2:], at=ids[1]) == (MOVED, ids[3], 2, 4)
    assert replays.move(ids[2:], at=ids[1]) == (ELSEWHERE, ids[3], 0, 4)
    assert [header["origin"] for _, header in replays.retries()] == ids


def test_a_page_without_selected_entries_moves_the_cursor(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 2)
    assert replays.move([], to=ids[1]) == (MOVED, ids[1], 0, 0)
    assert replays.progress() == ReplayProgress(ids[1])


def test_the_retry_stream_grows_to_the_window_and_no_further(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 6)
    replays.handle(6)
    assert replays.move(ids, window=4) == (MOVED, ids[3], 4, 4)
    assert replays.move(ids[4:], at=ids[3], window=4) == (NO_ROOM, ids[3], 0, 4)
    assert replays.progress() == ReplayProgress(ids[3], 4, 4, {}, 0, 0, 4)
    held = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.settle(CALLS.retries, "acked", held))
    assert replays.move(ids[4:], at=ids[3], window=4) == (MOVED, ids[4], 1, 4)


def test_fifty_are_moved_at_a_time(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 80)
    replays.handle(80)
    assert replays.move(ids) == (MOVED, ids[49], 50, 50)
    assert replays.move(ids[50:], at=ids[49]) == (MOVED, ids[79], 30, 80)


def test_large_entries_are_moved_a_few_at_a_time(replays: Replays, stream: redis.Redis) -> None:
    ids = [stream.xadd(KEY, {"m": "x" * (400 << 10)}) for _ in range(5)]
    replays.handle(5)
    assert replays.move(ids) == (MOVED, ids[2], 3, 3)
    assert replays.move(ids[3:], at=ids[2]) == (MOVED, ids[4], 2, 5)


def test_what_the_group_has_not_finished_is_left_out(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 6)
    replays.handle(2)
    (pending,) = replays.read(KEY, 1)
    (retried,) = replays.read(KEY, 1)
    replays.call(CALLS.retry(retried, HOUR, 1, "Failed", "boom"))
    stream.xdel(KEY, ids[0])
    assert (pending.id, retried.id) == (ids[2], ids[3])
    assert replays.move(ids) == (MOVED, ids[5], 1, 1)
    assert replays.progress().skipped == {"gone": 1, "pending": 2, "undelivered": 2}
    assert replays.progress().matched == 6
    assert [header["origin"] for _, header in replays.retries()] == [ids[1]]


def bury(replays: Replays, stream: redis.Redis, count: int) -> tuple[list[str], list[str]]:
    """Makes dead letters. Returns their ids, and those of the entries."""
    ids = fill(stream, count)
    for held in replays.read(KEY, count):
        replays.call(CALLS.dead_letter(held, 3, "MaxDeliveries", "boom"))
    return [letter for letter, _ in stream.xrange(KEYS.dead_letters("g"))], ids


def test_dead_letters_are_moved_without_what_was_wrong(replays: Replays, stream: redis.Redis) -> None:
    letters, ids = bury(replays, stream, 3)
    assert replays.move([letters[0], letters[2]], dead=True) == (MOVED, letters[2], 2, 2)
    assert [entry for entry, _ in stream.xrange(KEYS.dead_letters("g"))] == [letters[1]]
    for _, header in replays.retries():
        assert set(header) == {"origin", "attempts", "fence", "replay"}
        assert header["attempts"] == 0
    assert [header["origin"] for _, header in replays.retries()] == [ids[0], ids[2]]
    assert [set(fields) for _, fields in stream.xrange(KEYS.retry("g"))] == [{"m", "x"}] * 2


def test_dead_letters_are_dropped_once(replays: Replays, stream: redis.Redis) -> None:
    letters, _ = bury(replays, stream, 3)
    stream.xdel(KEYS.dead_letters("g"), letters[1])
    command = drop(AGAIN, ("", letters[1]), letters[:2])
    assert parse_moved(replays.call(command)) == (MOVED, letters[1], 1, 0)
    assert parse_moved(replays.call(command)) == (ELSEWHERE, letters[1], 0, 0)
    assert replays.progress() == ReplayProgress(letters[1], 2, 1, {"gone": 1})
    assert [entry for entry, _ in stream.xrange(KEYS.dead_letters("g"))] == [letters[2]]


def test_a_letter_that_somebody_made_up_is_moved_as_far_as_it_can_be_read(
    replays: Replays, stream: redis.Redis
) -> None:
    for fields in (
        {"m": "a", "origin": "no id", "fence": "many", "attempts": "-1"},
        {"m": "b", "origin": "7-7", "fence": "99999999999", "x": '{"replay": "made.up1"}'},
        {"m": "c"},
        {"reason": "nothing else"},
    ):
        stream.xadd(KEYS.dead_letters("g"), fields)
    letters = [letter for letter, _ in stream.xrange(KEYS.dead_letters("g"))]
    stream.xgroup_setid(KEY, "g", "0")
    assert replays.move(letters, dead=True) == (MOVED, letters[3], 4, 4)
    headers = [json.loads(fields["x"]) for _, fields in stream.xrange(KEYS.retry("g"))]
    assert [header.get("origin") for header in headers] == [None, "7-7", None, None]
    assert {header["replay"] for header in headers} == {AGAIN.id}
    assert all(header["fence"] > 10**12 for header in headers)


def test_a_letter_larger_than_any_message_stays(replays: Replays, stream: redis.Redis) -> None:
    letter = stream.xadd(KEYS.dead_letters("g"), {"m": "x" * (18 << 20)})
    assert replays.move([letter], dead=True) == (MOVED, letter, 0, 0)
    assert replays.progress().skipped == {"invalid": 1}
    assert stream.xlen(KEYS.dead_letters("g")) == 1


def test_progress_counts_what_the_group_makes_of_it(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 4)
    replays.handle(4, PLAIN)
    replays.move(ids)
    held = replays.read(KEYS.retry("g"), 4)
    replays.call(PLAIN.settle(PLAIN.retries, "acked", held[:2]))
    replays.call(PLAIN.dead_letter(held[2], 5, "MaxDeliveries", "boom"))
    replays.call(PLAIN.retry(held[3], 0, 1, "Failed", "boom"))
    assert replays.progress() == ReplayProgress(ids[3], 4, 4, {}, 2, 1, 1)
    (retried,) = replays.read(KEYS.retry("g"), 1)
    replays.call(PLAIN.release(PLAIN.retries, "begun", [retried]))
    (released,) = replays.read(KEYS.retry("g"), 1)
    replays.call(PLAIN.settle(PLAIN.retries, "acked", [released]))
    assert replays.progress() == ReplayProgress(ids[3], 4, 4, {}, 3, 1, 0)


def test_a_replay_that_nobody_asked_for_is_not_counted(replays: Replays, stream: redis.Redis) -> None:
    stream.xadd(KEYS.retry("g"), {"m": "x", "x": '{"origin":"1-1","replay":"made.up1"}'})
    held = replays.read(KEYS.retry("g"), 1)
    replays.call(PLAIN.settle(PLAIN.retries, "acked", held))
    assert not [name for name in replays.stats() if name.startswith("replay:")]


def test_a_delayed_retry_comes_back_as_part_of_the_replay(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 1)
    replays.handle(1)
    replays.move(ids)
    ((_, before),) = replays.retries()
    (held,) = replays.read(KEYS.retry("g"), 1)
    replays.call(CALLS.retry(held, 1, 1, "Failed", "boom"))
    stream.eval(
        "redis.call('ZADD', KEYS[1], 'XX', 1, redis.call('ZRANGE', KEYS[1], 0, 0)[1])", 1, KEYS.delay("g")
    )
    replays.call(CALLS.sweep(HOUR, 1000, 0, now=False))
    ((_, after),) = replays.retries()
    assert after["replay"] == before["replay"]
    assert (after["attempts"], after["fence"]) == (1, before["fence"] + 1)


def test_fences_grow_from_replay_to_replay_though_the_clock_is_set_back(
    replays: Replays, stream: redis.Redis
) -> None:
    ids = fill(stream, 1)
    replays.handle(1)
    fences = [1]
    for number in range(3):
        of = ReplayOf(KEY, "g", replay_id(f"r{number}", "01234567"))
        assert replays.move(ids, of=of).moved == 1
        (held,) = replays.read(KEYS.retry("g"), 1)
        ((_, header),) = replays.retries()
        fences.append(header["fence"] + held.counter)
        if number == 1:
            replays.call(CALLS.dead_letter(held, 1, "Failed", "boom"))
            ((letter, fields),) = stream.xrange(KEYS.dead_letters("g"))
            assert int(fields["fence"]) == fences[-1]
            assert replays.move([letter], of=LATER, dead=True).moved == 1
            ((_, header),) = replays.retries()
            (held,) = replays.read(KEYS.retry("g"), 1)
            fences.append(header["fence"] + held.counter)
        replays.call(CALLS.settle(CALLS.retries, "acked", [held]))
        # an earlier replay began when the clock was ahead
        stream.hincrby(KEYS.meta, "fence:g", 10_000_000)
    assert fences == sorted(set(fences))


def test_a_group_that_is_gone_gets_nothing(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 1)
    replays.handle(1)
    replays.call(commands.destroy_group(KEY, "g"))
    with pytest.raises(redis.ResponseError, match=r"^NOGROUP"):
        replays.move(ids)
    assert not stream.exists(KEYS.retry("g"), KEYS.replay(AGAIN.id))


def test_nothing_is_left_of_a_replay_that_ends(replays: Replays, stream: redis.Redis) -> None:
    before = stream.hgetall(KEYS.meta)
    ids = fill(stream, 2)
    replays.handle(2)
    replays.move([Selected(ids[0], "", "k")])
    assert replays.call(end(AGAIN)) == 1
    assert replays.call(end(AGAIN)) == 0
    assert not list(stream.scan_iter("*:replay:*"))
    assert set(stream.hgetall(KEYS.meta)) - set(before) == {"fence:g"}
    assert not [name for name in replays.stats() if name.startswith("replay:")]
    assert stream.xlen(KEYS.retry("g")) == 1
    assert replays.progress() == ReplayProgress(waiting=1)


def test_replays_go_with_their_group_and_with_their_stream(replays: Replays, stream: redis.Redis) -> None:
    ids = fill(stream, 2)
    replays.call(commands.create_group(KEY, "h", "0"))
    replays.handle(2)
    stream.xreadgroup("h", "pod.1", {KEY: ">"})
    stream.xack(KEY, "h", *ids)
    others = ReplayOf(KEY, "h", replay_id("others", "01234567"))
    for of in (AGAIN, LATER, others):
        assert replays.move(ids, of=of).moved == 2
    replays.call(commands.destroy_group(KEY, "g"))
    assert list(stream.scan_iter("*:replay:*")) == [KEYS.replay(others.id)]
    assert "replay:again.01234567" not in stream.hgetall(KEYS.meta)
    replays.call(commands.delete_stream(KEY, ("g", "h"), only_if_empty=False))
    assert not list(stream.scan_iter())


def test_a_server_that_is_out_of_memory_refuses_copies_and_lets_letters_be_dropped(
    replays: Replays, stream: redis.Redis
) -> None:
    letters, _ = bury(replays, stream, 2)
    stream.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            replays.move(letters, dead=True)
        assert parse_moved(replays.call(drop(AGAIN, ("", letters[1]), letters))).moved == 2
    finally:
        stream.config_set("maxmemory", 0)


OUT_OF_BOUNDS: dict[str, commands.Command] = {
    "ids out of order": replay(AGAIN, "stream", ("", "2-0"), 1, (Selected("2-0"), Selected("1-0"))),
    "an id twice": replay(AGAIN, "stream", ("", "2-0"), 1, (Selected("1-0"), Selected("1-0"))),
    "an id before the cursor": replay(AGAIN, "stream", ("1-0", "2-0"), 1, (Selected("1-0"),)),
    "an id after the new cursor": replay(AGAIN, "stream", ("", "1-0"), 1, (Selected("2-0"),)),
    "a cursor that goes back": replay(AGAIN, "stream", ("2-0", "1-0"), 1, ()),
    "a cursor that is no id": replay(AGAIN, "stream", ("(1-0", "2-0"), 1, ()),
    "no new cursor": replay(AGAIN, "stream", ("1-0", ""), 1, ()),
    "an id that is none": replay(AGAIN, "stream", ("", "2-0"), 1, (Selected("x"),)),
    "no window": replay(AGAIN, "stream", ("", "2-0"), 0, ()),
    "another source": replay(AGAIN, "moon", ("", "2-0"), 1, ()),  # type: ignore[arg-type]
    "more than a page": replay(
        AGAIN, "stream", ("", "9-0"), 1, [Selected(f"1-{n}") for n in range(commands.PAGE + 1)]
    ),
    "a replay with colons": replay(ReplayOf(KEY, "g", "a:b.c"), "stream", ("", "2-0"), 1, ()),
    "a replay without a uid": end(ReplayOf(KEY, "g", "again")),
    "a name of a MiB": progress(ReplayOf(KEY, "g", "x" * (1 << 20) + ".1")),
    "a reason of many words": replay(AGAIN, "stream", ("", "2-0"), 1, (Selected("1-0", "two words"),)),
    "a key of a MiB": replay(AGAIN, "stream", ("", "2-0"), 1, (Selected("1-0", "", "k" * (1 << 20)),)),
    "letters out of order": drop(AGAIN, ("", "2-0"), ("2-0", "1-0")),
    "letters of another page": drop(AGAIN, ("2-0", "3-0"), ("1-0",)),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_arguments_out_of_bounds_are_refused_before_anything_is_changed(
    replays: Replays, stream: redis.Redis, name: str
) -> None:
    for entry in ("1-0", "2-0"):
        stream.xadd(KEY, {"m": "x"}, id=entry)
    replays.handle(2)
    before = set(stream.scan_iter())
    with pytest.raises(redis.ResponseError, match=r"^(an argument|ids must|wrong number|unknown source)"):
        replays.call(OUT_OF_BOUNDS[name])
    assert set(stream.scan_iter()) == before
    assert stream.xlen(KEYS.retry("g")) == 0
