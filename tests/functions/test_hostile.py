"""Whatever an agent calls, with whatever arguments and on whatever it wrote, harms nobody else.

Every function that an agent may call, by its own access rules, is called with hostile arguments, logged in as
that agent. An answer comes, after a bounded number of commands inside the server, without a word about the
inside of the library; afterwards the janitor, measuring, claiming and settling work on that stream and on
another one.

AGENTSTREAM_EXAMPLES=10000 looks further, and prints the slowest call.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream.protocol import commands, library
from agentstream.protocol.commands import DONE, PAGE, Command, GroupCalls
from agentstream.protocol.entry import Entry
from agentstream.protocol.keys import StreamKeys, reply_key
from agentstream.protocol.routes import Consumes, Produces
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.access import AgentUse, rules, set_user
from support.agents import HASHES, PASSWORD
from support.entries import HOUR, KEY, Pending
from support.servers import Server
from support.work import Work, counting

ORDINARY = 100
EXAMPLES = int(os.environ.get("AGENTSTREAM_EXAMPLES", ORDINARY))
LARGEST = 1 << 20
KEYS = StreamKeys(KEY)
OTHER = "{t.other}"
POLICY = Consumes("tasks", KEY, "g", broadcast=True)
AGENT = AgentUse("t", "bad", (Produces("tasks", KEY, broadcast=True),), (POLICY,))
FUNCTIONS = tuple(sorted(set(re.findall(r"\+fcall(?:_ro)?\|(as1_\w+)", " ".join(rules(AGENT, "test"))))))
ANSWERS = reply_key("t", "writer", "0123456789abcdef" * 2)

CALLS = GroupCalls(POLICY, "bad.1")
MINE = [Pending(f"1000-{n}") for n in (1, 2, 3)]
MY_RETRIES = [Pending(f"1000-{n}", CALLS.retries) for n in (1, 2)]
ONE = commands.message(b"body", ("once", KEYS.once("bad", "", "k"), "key", "k", "receipts", KEYS.receipts))
VALID: Sequence[Command] = (
    commands.add(KEYS, "token", 0, 1000, (*ONE, *commands.message(b"x"))),
    commands.add(KEYS, "token", 1, 1000, commands.message(b"x", ("s", "v") * 98)),
    commands.reply(ANSWERS, 1000, ("m", b"x")),
    commands.receipt(KEYS, ("g", "h"), ("1000-1", "1000-9")),
    commands.once(KEY, KEYS.done("g", "k"), "token", 1000),
    commands.end_once(KEY, KEYS.done("g", "k"), "token", "done", 1000),
    CALLS.originals([Entry(CALLS.main, "", f"1000-{n}", b"m") for n in (1, 2)]),
    CALLS.turn(CALLS.main, [Pending("1000-1", after="0-0"), Pending("1000-2", after="1000-1")]),
    CALLS.sweep(1000, 1000, 100, now=True),
    *(
        command
        for source, held in ((CALLS.main, MINE), (CALLS.retries, MY_RETRIES))
        for command in (
            CALLS.take(source, "bad.1", "-", 100),
            CALLS.turn(source, held),
            CALLS.begin(source, held),
            CALLS.renew(source, 1000, held),
            *(CALLS.release(source, state, held) for state in ("begun", "delivered", "claimed")),
            CALLS.settle(source, "acked", held),
            CALLS.retry(held[0], 0, 1, "Failed", "boom"),
            CALLS.retry(held[0], 1000, 1, "Failed", "boom"),
            CALLS.dead_letter(held[0], 1, "Failed", "boom"),
        )
    ),
)

# all that a function reads or moves is pending, retried, delayed or unread; the ids are known
_WORLD = """
local key, retry, header = KEYS[1], KEYS[1] .. ':retry:g', '{"origin":"900-1","attempts":1}'
redis.call('FLUSHALL')
for _, stream in ipairs({key, retry, KEYS[2], KEYS[2] .. ':retry:g'}) do
  redis.call('XGROUP', 'CREATE', stream, 'g', '0', 'MKSTREAM')
end
redis.call('XGROUP', 'CREATE', key, 'h', '0')
redis.call('XGROUP', 'CREATE', key .. ':retry:h', 'h', '0', 'MKSTREAM')
for i = 1, 3 do redis.call('XADD', key, '1000-' .. i, 'm', 'x') end
for i = 1, 2 do redis.call('XADD', retry, '1000-' .. i, 'm', 'x', 'x', header) end
for _, stream in ipairs({key, retry}) do
  redis.call('XREADGROUP', 'GROUP', 'g', 'bad.1', 'STREAMS', stream, '>')
end
for i = 4, 6 do redis.call('XADD', key, '1000-' .. i, 'm', 'x', 'p', '0-0') end
redis.call('ZADD', key .. ':delay:g', 1, cmsgpack.pack({'900-2', 1, {'m', 'x', 'x', header}, 1000}))
redis.call('ZADD', key .. ':receipts', 0, 'since', 1000, '1000-1', 1000, '1000-4')
"""

NUMBERS = (
    *("-1", "-2", "0", "1", "2", "3", "4", "-0", "+1", "1.5", "1e3", "1e18", "1e308", "-1e18", "0x10", "nan"),
    *("NaN", "inf", "-inf", " 1", "1 ", "1\n", "\u0663", "500", "501", "100000000", "9007199254740991"),
    *("9007199254740993", "18446744073709551615", "18446744073709551616", "9" * 400),
)
IDS = (
    *("-", "+", "$", ">", "*", "0", "0-0", "0-1", "1000-1", "1000-4", "1000-9", "(1000-1", "1000", "01-1"),
    *("18446744073709551615-18446744073709551615", "18446744073709551616-0", "99999999999999999999-1"),
    *("1000-*", "1-1-1", "-1-1", f"{'9' * 400}-1"),
)
WORDS = (
    *("", "once", "key", "receipts", "since", "m", "x", "p", "g", "h", "nobody", "bad.1", "other.2", "begin"),
    *("done", "acked", "begun", "delivered", "claimed", "%", "%d+", "*", "{}", "\x00", "\r\n-ERR x\r\n"),
)
JSON = (
    "[]",
    "null",
    '{"origin":"1000-1"}',
    '{"origin":"1000-1","replay":"again.01234567"}',
    '{"origin":"1000-1","replay":"%s.1"}' % ("x" * 100),
    '{"replay":{"a":[1]}}',
    '{"origin":"\xff"}',
    '{"a":NaN}',
    '{"attempts":1e999}',
    "[" * 2000,
)
MSGPACK = (b"\x93\x01\x02", b"\xdd\xff\xff\xff\xff", b"\xc1", b"\x91" * 500, b"\xcb\x7f\xf8" + b"\0" * 6)
DERIVED = (
    *(KEY, KEYS.retry("g"), KEYS.delay("g"), KEYS.stats("g"), KEYS.parked("g"), KEYS.dead_letters("g")),
    *(
        KEYS.gate,
        KEYS.order,
        KEYS.receipts,
        KEYS.meta,
        KEYS.sent("token"),
        KEYS.done("g", "k"),
        OTHER,
        ANSWERS,
    ),
)
PIECES = st.one_of(
    st.sampled_from(NUMBERS).map(str.encode),
    st.sampled_from(IDS).map(str.encode),
    st.sampled_from(WORDS + DERIVED).map(str.encode),
    st.sampled_from(JSON).map(lambda text: text.encode("latin-1")),
    st.sampled_from(MSGPACK),
    st.integers(-(2**70), 2**70).map(lambda number: str(number).encode()),
    st.floats().map(lambda number: repr(number).encode()),
    st.binary(max_size=32),
    st.sampled_from((b"x", b"9", b"\xff", b" g=1")).flatmap(
        lambda part: st.sampled_from((100, 1025, 5000)).map(lambda times: part * times)
    ),
)


@dataclass(frozen=True)
class Call:
    """A call of a function, as it goes to the server."""

    how: str
    function: str
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    @property
    def command(self) -> tuple[str | bytes | int, ...]:
        return (self.how, self.function, len(self.keys), *self.keys, *self.arguments)

    @classmethod
    def of(cls, command: Command) -> Call:
        how, function, count, *rest = command
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in rest]
        return cls(str(how), str(function), tuple(parts[: int(count)]), tuple(parts[int(count) :]))


def mutated(draw: st.DrawFn, arguments: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The arguments, changed in one place."""
    at = draw(st.integers(0, len(arguments)))
    before, after = arguments[:at], arguments[at:]
    match draw(st.sampled_from(("replace", "insert", "drop", "cut", "repeat", "many"))):
        case "replace":
            return (*before, draw(PIECES), *after[1:])
        case "insert":
            return (*before, draw(PIECES), *after)
        case "drop":
            return (*before, *after[1:])
        case "cut":
            return before
        case "repeat":
            return (*before, *_times(after, draw(st.sampled_from((2, 3, 100, 300, 600)))))
        case _:
            return (*before, *_times((draw(PIECES),), draw(st.sampled_from((1, 50, 202, 1001, 4001)))))


def _times(parts: tuple[bytes, ...], times: int) -> tuple[bytes, ...]:
    """The parts so many times, but not more than a few MiB."""
    return parts * min(times, max(1, LARGEST // (sum(map(len, parts)) + 10 * len(parts) + 1)))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call of a function that the agent may call, mostly one that was valid before it was changed."""
    function = draw(st.sampled_from(FUNCTIONS))
    # a function that nobody wrote an example for is called as well
    known = [Call.of(command) for command in VALID if command[1] == function]
    call = draw(st.sampled_from(known or [Call("FCALL", function, (KEY.encode(),), ())]))
    keys, arguments = call.keys, call.arguments
    for _ in range(draw(st.integers(0, 3)) or (not known)):
        arguments = mutated(draw, arguments)
    if not draw(st.integers(0, 9)):
        keys = tuple(draw(st.lists(st.sampled_from(DERIVED).map(str.encode), max_size=3)))
    return Call(call.how, function, keys, arguments)


FIELDS = (
    *("settled", "resettled", "acked", "le:1", "base:read", "unreadable", "expire:at", "forget:at"),
    *("sweep:heard", "sweep:delayed", "sweep:mend", "sweep:due", "sweep:main", "sweep:retry"),
    *("sweep:ahead", "sweep:retries-ahead"),
)
SCORES = st.one_of(st.floats(allow_nan=False), st.sampled_from((0, 1, 1e13, 9e15)))
NAMES = st.sampled_from(("m", "x", "p", "s", "t", "origin", "")).map(str.encode)
ENTRY_FIELDS = st.lists(NAMES | PIECES, min_size=2)
NEW_ID = "*"
# not XADD with an id of its own, XCLAIM with LASTID or XREADGROUP with NOACK: what is lost by them is told
WRITTEN = st.one_of(
    st.tuples(st.just("HSET"), st.just(KEYS.stats("g")), st.sampled_from(FIELDS), PIECES),
    st.tuples(st.just("HSET"), st.sampled_from((KEYS.parked("g"), KEYS.order)), PIECES, PIECES),
    st.tuples(st.just("ZADD"), st.just(KEYS.delay("g")), SCORES, PIECES),
    st.tuples(st.just("ZADD"), st.just(KEYS.receipts), SCORES, PIECES | st.just(b"since")),
    st.tuples(st.just("SET"), st.sampled_from((KEYS.sent("token"), KEYS.done("g", "k"))), PIECES),
    st.tuples(
        *map(st.just, ("XCLAIM", KEY, "g", "bad.2", 0, "1000-1", "1000-5", "FORCE", "RETRYCOUNT")),
        st.sampled_from((0, 1, 2**53, 2**62)),
    ),
    *(
        ENTRY_FIELDS.map(lambda fields, key=key: ("XADD", key, NEW_ID, *fields[: len(fields) // 2 * 2]))
        for key in (KEY, KEYS.retry("g"), KEYS.dead_letters("g"), ANSWERS)
    ),
    st.sampled_from(JSON).map(
        lambda text: ("XADD", KEYS.retry("g"), NEW_ID, "m", "x", "x", text.encode("latin-1"))
    ),
    st.binary(min_size=1, max_size=20).map(
        lambda name: ("XREADGROUP", "GROUP", "g", name, "COUNT", 1, "STREAMS", KEY, ">")
    ),
)


class World:
    """A server with two streams, and somebody who is logged in as the agent."""

    def __init__(self, server: Server) -> None:
        self.admin = redis.Redis(port=server.port, protocol=2, socket_timeout=20)
        self.agent = redis.Redis(
            port=server.port,
            protocol=2,
            username="test.t.bad",
            password=PASSWORD,
            client_name="bad",
            socket_timeout=10,
        )
        self.admin.config_set("slowlog-log-slower-than", 1000)
        self.admin.config_set("slowlog-max-len", 10_000)
        self.admin.slowlog_reset()
        self.admin.execute_command("FUNCTION", "LOAD", "REPLACE", counting(library.source()))

    def close(self) -> None:
        self.agent.close()
        self.admin.close()

    def slowest(self) -> str:
        """The longest call of the agent, by the server's own clock."""
        calls = [one for one in self.admin.slowlog_get(10_000) if one["client_name"] == b"bad"]
        longest = max(calls, key=lambda one: one["duration"], default={"duration": 0, "command": b"none"})
        return f"slowest call: {longest['duration'] / 1000:.1f} ms, {longest['command'][:200]!r}"

    def reset(self) -> None:
        self.admin.eval(_WORLD, 2, KEY, OTHER)

    def call(self, command: Sequence[str | bytes | int | float]) -> object:
        """Calls as the administrator, as everybody but the agent."""
        return self.admin.execute_command(*command)

    def write(self, commands: Sequence[tuple[object, ...]]) -> None:
        """Writes as the agent, with its own rights."""
        with self.agent.pipeline(transaction=False) as batch:
            for command in commands:
                batch.execute_command(*command)
            refused = [one for one in batch.execute(raise_on_error=False) if isinstance(one, Exception)]
        assert not [one for one in refused if isinstance(one, redis.exceptions.NoPermissionError)]

    def attack(self, call: Call) -> tuple[object, Work]:
        """Calls as the agent. Returns the reply or the error, and the work that it was."""
        self.call(("FCALL_RO", "work_done", 0))
        try:
            reply: object = self.agent.execute_command(*call.command)
        except redis.exceptions.ResponseError as error:
            reply = error
        return reply, Work(*self.call(("FCALL_RO", "work_done", 0)))  # type: ignore[misc]


@pytest.fixture
async def world(server: Server, broker: Broker, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[World]:
    await broker.apply(set_user(AGENT, "test", HASHES))
    made = World(server)
    yield made
    if EXAMPLES > ORDINARY:
        with capsys.disabled():
            sys.stdout.write(f"\n{server.version}: {made.slowest()}\n")
    made.close()


def check_reply(call: Call, reply: object, work: Work) -> None:
    """The call was bounded, and its error says nothing of the inside."""
    given = sum(map(len, call.arguments))
    assert work.calls <= 12 * PAGE
    assert work.bytes <= (16 << 20) + 40 * given
    if isinstance(reply, Exception):
        assert not re.search(
            "user_function|user_script|attempt to|bad argument|Lua redis|too many results", str(reply)
        )
        assert len(str(reply)) < 500 or "NOGROUP" in str(reply)


def check_healthy(world: World, key: str, group: str) -> None:
    """Measuring, the janitor, adding, reading, claiming and settling work on a stream."""
    keys, policy = StreamKeys(key), Consumes("s", key, group, broadcast=True)
    here, there = GroupCalls(policy, "honest.1"), GroupCalls(policy, "honest.2")
    reply = world.call(commands.measure([(key, "", (group,))], trusts_lag=True))
    assert json.loads(reply[1])["groups"][group]["exists"]  # type: ignore[index]
    assert len(world.call(there.sweep(1000, 1000, 100, now=True))) == 4  # type: ignore[arg-type]
    limits = (HOUR, 1_000_000, 0, "TrimAcknowledged", 100_000)
    janitor = commands.janitor(key, limits, [(group, 1000, HOUR)], trusts_lag=True, broadcast=True)
    for _ in range(20):
        if not json.loads(world.call(janitor))["more"]:  # type: ignore[arg-type]
            break
    else:
        pytest.fail("the janitor finds no end")
    added = world.call(commands.add(keys, "honest", 0, 1000, commands.message(b"healthy")))
    number, entry = added.decode().split(" ")  # type: ignore[attr-defined]
    assert number == "0"
    assert "-" in entry
    while entry not in (found := _read(world, key, group, "honest.1")):
        assert found, "a healthy message is not delivered"
    held = [Pending(entry, here.main)]
    assert world.call(here.begin(here.main, held)) == [2]
    held = [Pending(entry, here.main, 2)]
    assert world.call(here.renew(here.main, 1000, held)) == [DONE]
    assert world.call(here.release(here.main, "claimed", held)) == [DONE]
    for _ in range(20):
        _, stalled, _, _ = world.call(there.sweep(1000, 1000, 100, now=True))  # type: ignore[misc]
        if entry in [one[0].decode() for one in stalled]:
            break
    else:
        pytest.fail("a healthy message is not claimed")
    assert world.call(there.settle(there.main, "acked", held)) == [DONE]
    world.admin.delete(keys.sent("honest"))


def _read(world: World, key: str, group: str, consumer: str) -> list[str]:
    reply = world.admin.xreadgroup(group, consumer, {key: ">"}, count=1000)
    return [entry.decode() for entry, _ in reply[0][1]] if reply else []  # type: ignore[index]


def test_each_function_that_an_agent_may_call_has_an_example() -> None:
    assert {command[1] for command in VALID} == set(FUNCTIONS)


def test_whatever_the_arguments_nobody_else_is_harmed(world: World) -> None:
    @settings(max_examples=EXAMPLES)
    @given(calls())
    def attack(call: Call) -> None:
        world.reset()
        check_reply(call, *world.attack(call))
        for key, group in ((KEY, "g"), (KEY, "h"), (OTHER, "g")):
            check_healthy(world, key, group)

    attack()


def test_whatever_is_in_its_keys_nobody_else_is_harmed(world: World) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.lists(WRITTEN, min_size=1, max_size=6), calls())
    def attack(written: list[tuple[object, ...]], call: Call) -> None:
        world.reset()
        world.write(written)
        check_reply(call, *world.attack(call))
        for key, group in ((KEY, "g"), (KEY, "h"), (OTHER, "g")):
            check_healthy(world, key, group)

    attack()


def test_thousands_of_consumers_harm_nobody_else(world: World) -> None:
    world.reset()
    world.write([("XREADGROUP", "GROUP", "g", f"x{n}", "COUNT", 1, "STREAMS", KEY, ">") for n in range(5000)])
    for command in VALID:
        check_reply(Call.of(command), *world.attack(Call.of(command)))
    for key, group in ((KEY, "g"), (KEY, "h"), (OTHER, "g")):
        check_healthy(world, key, group)


def _add(*messages: object, number: object = 0, lifetime: object = 1000) -> Command:
    return commands.add(KEYS, "token", number, lifetime, messages)  # type: ignore[arg-type]


SMALL = {
    "a step back through the arguments": _add(b"x", -2),
    "options without end": _add(b"x", "1e18"),
    "an odd number of options": _add(b"x", 1, "once"),
    "more options than arguments": _add(b"x", 4, "a", "b"),
    "options in hexadecimal": _add(b"x", "0x2", "a", "b"),
    "more than a hundred fields": _add(b"x", 200, *("a", "b") * 100),
    "more messages than a page": _add(*(b"x", 0) * (PAGE + 1)),
    "a lifetime below zero": _add(b"x", 0, lifetime=-1),
    "a number that is none": _add(b"x", 0, number="nan"),
    "an answer with 4,000 fields": commands.reply(ANSWERS, 1000, ("a", "b") * 4000),
    "an answer that lives for less than nothing": commands.reply(ANSWERS, -1, ("m", "x")),
    "a token of a MiB": commands.once(KEY, KEYS.done("g", "k"), "x" * (1 << 20), 1000),
    "a reason of a MiB": CALLS.retry(MINE[0], 0, 1, "x" * (1 << 20), ""),
    "an error of a MiB": CALLS.dead_letter(MINE[0], 1, "Failed", "x" * (1 << 20)),
    "a delay below zero": CALLS.retry(MINE[0], -1, 1, "Failed", ""),
    "a count below zero": CALLS.take(CALLS.main, "bad.1", "-", -1),
    "300,000 ids": CALLS.turn(CALLS.main, [Pending("1000-1", after="0-0")] * 100_000),
    "no ids": CALLS.settle(CALLS.main, "acked", ()),
    "a counter that is none": CALLS.settle(CALLS.main, "acked", [Pending("1000-9", counter="x")]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", SMALL)
def test_arguments_out_of_bounds_are_refused_before_anything_is_changed(world: World, name: str) -> None:
    world.reset()
    before = _contents(world)
    reply, work = world.attack(Call.of(SMALL[name]))
    assert isinstance(reply, redis.exceptions.ResponseError)
    assert str(reply).startswith(("an argument", "wrong number", "too many"))
    assert work.calls <= 3
    assert _contents(world) == before


@pytest.mark.parametrize("count", [0, 3001])
@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"register\('(\w+)'", library.source())) - {"as1_revision"})
)
def test_every_function_refuses_too_few_arguments_and_too_many(world: World, name: str, count: int) -> None:
    world.reset()
    before = _contents(world)
    with pytest.raises(
        redis.exceptions.ResponseError, match=r"^(an argument must|wrong number of arguments)"
    ):
        world.call(("FCALL", name, 1, KEY, *["x"] * count))
    assert _contents(world) == before


@pytest.mark.parametrize(
    "command",
    [
        (*commands.heal_group(KEY, "g", again=True), "more"),
        commands.heal_group(KEY, "g", again=True)[:-1],
        commands.heal_ids(KEY, ["g"] * (2 * PAGE + 1)),
        commands.create_group(KEY, "g", "0")[:-1],
        (*commands.create_group(KEY, "g", "0"), "more"),
        (*commands.destroy_group(KEY, "g"), "more"),
    ],
    ids=lambda command: f"{command[1]} {len(command)}",
)
def test_what_changes_a_group_takes_just_its_arguments(world: World, command: Command) -> None:
    world.reset()
    before = _contents(world)
    with pytest.raises(redis.exceptions.ResponseError, match=r"^wrong number of arguments"):
        world.call(command)
    assert _contents(world) == before


def test_counts_are_clamped(world: World) -> None:
    world.reset()
    with world.admin.pipeline(transaction=False) as batch:
        for n in range(2 * PAGE):
            batch.xadd(KEY, {"m": "x"}, id=f"2000-{n}")
        batch.xreadgroup("g", "bad.1", {KEY: ">"})
        batch.execute()
    for call in (CALLS.take(CALLS.main, "bad.1", "-", 10**8), CALLS.sweep(0, 0, 10**8, now=True)):
        reply, _ = world.attack(Call.of(call))
        assert len(reply[1]) == PAGE  # type: ignore[index]


def test_what_adds_is_refused_by_a_server_that_is_out_of_memory(world: World) -> None:
    world.reset()
    done = KEYS.done("g", "k")
    assert world.attack(Call.of(commands.once(KEY, done, "token", 1000)))[0] == 1
    world.admin.config_set("maxmemory", "1mb")
    try:
        for call in (
            commands.once(KEY, KEYS.done("g", "other"), "token", 1000),
            commands.add(KEYS, "token", 0, 1000, commands.message(b"x")),
            commands.reply(ANSWERS, 1000, ("m", b"x")),
        ):
            reply, _ = world.attack(Call.of(call))
            assert str(reply).startswith("command not allowed when used memory"), call
            assert isinstance(reply, redis.exceptions.OutOfMemoryError)
        # what began goes on to its end, and what is held is settled
        assert world.attack(Call.of(commands.end_once(KEY, done, "token", "done", 1000)))[0] == 1
        assert (
            world.attack(Call.of(commands.end_once(KEY, KEYS.done("g", "none"), "t", "done", 1000)))[0] == 0
        )
        assert world.attack(Call.of(CALLS.settle(CALLS.main, "acked", MINE[:2])))[0] == [DONE, DONE]
        assert world.attack(Call.of(CALLS.retry(MINE[2], 0, 1, "Failed", "boom")))[0] == DONE
    finally:
        world.admin.config_set("maxmemory", 0)


def _contents(world: World) -> dict[bytes, bytes]:
    return {key: world.admin.dump(key) for key in world.admin.scan_iter() if b"stats" not in key}
