"""No entry, header or payload ends a consumer: what cannot be read becomes a dead letter on its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentstream.protocol import commands
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from support.topology import NAMESPACE, Topology, fields_of
from support.waiting import until

ENVELOPE = {
    "v": 1,
    "id": "00000000-0000-4000-8000-000000000000",
    "from": "planner",
    "to": "coder",
    "type": "event",
    "timestamp": 0,
}
Fields = list[bytes]


def body(payload: Any = None, **changes: Any) -> bytes:
    return msgspec.json.encode({**ENVELOPE, "payload": payload or {}, **changes})


def nested(depth: int, **changes: Any) -> bytes:
    """A message whose payload is that deep."""
    return body(**changes).replace(b'"payload":{}', b'"payload":{"n":' + b"[" * depth + b"]" * depth + b"}")


class Work(msgspec.Struct):
    """A payload of the second version."""

    __schema_version__ = 2

    n: int


@dataclass
class Hostile:
    """A running consumer, with contracts and upcasters, that looks at signatures; and what it handled."""

    topology: Topology
    group: Consumes
    keys: StreamKeys
    running: asyncio.Task[None]
    handled: list[int] = field(default_factory=list)
    sent: int = 0

    async def add(self, key: str, fields: Fields) -> None:
        await self.topology.wire.call("XADD", key, "*", *fields)

    async def goes_on(self) -> None:
        """Asserts that a healthy message, added now, is handled, and that nothing is left."""
        self.sent += 1
        number = self.sent
        await self.topology.add_raw(self.group.key, body({"n": number}, schema_version=2))

        async def is_handled() -> bool:
            assert not self.running.done(), self.running
            return number in self.handled

        await until(is_handled)
        await until(self._nothing_is_left)

    async def _nothing_is_left(self) -> bool:
        assert not self.running.done(), self.running
        retries = await self.topology.wire.call("XLEN", self.keys.retry("coder"))
        delayed = await self.topology.wire.call("ZCARD", self.keys.delay("coder"))
        return not retries and not delayed and not await self.topology.pending(self.group)


@pytest.fixture
async def hostile(topology: Topology) -> AsyncIterator[Hostile]:
    keys = await topology.stream("tasks")
    policy = {"contracts": "digest", "signatures": "Warn", "max_deliveries": 2, "backoff_max": 20}
    group = await topology.group("tasks", "coder", **policy)
    schema = {f"event@{version}": '{"type":"object"}' for version in (1, 2)}
    await topology.wire.call(*commands.set_contracts(group.key, "digest", schema))
    async with topology.agent("coder") as coder:
        coder.upcast("event", from_version=1)(lambda payload: payload)
        running = asyncio.create_task(coder.run())
        made = Hostile(topology, group, keys, running)

        @coder.on("event")
        async def handle(work: Work) -> None:
            made.handled.append(work.n)

        yield made
        coder.stop()
        await running


BODIES = (
    b"",
    b"\xff",
    b"{",
    b"[]",
    b"null",
    b"9" * 5000,
    b"[" * 100_000,
    body(),
    body({"n": "x"}),
    body({"n": 1 << 70}),
    body({"n": 0}, v=2),
    body({"n": 0}, v=1 << 80),
    body({"n": 0}, schema_version=0),
    body(type="other"),
    body({"n": 0}, timestamp=-1),
    body({"n": 0}, expires_at=1),
    body({"n": 0}, key="k"),
    body({"n": 0}, key=""),
    body({"n": 0}).replace(b'"planner"', b'"\\ud800"'),
    body({"n": 0}).replace(b'"planner"', b'"\xff"'),
    body({"n": 0}).replace(b'"n":0', b'"n":1e999'),
    body({"n": 0}).replace(b'"n":0', b'"n":' + b"9" * 5000),
    body({"n": 0}).replace(b'"n":0', b'"n":0,"\\udfff":"\\ud800"'),
    body({"n": 0}).replace(b'"n":0', b'"n":NaN'),
    *(
        nested(depth, schema_version=version)
        for depth in (50, 200, 300, 600, 950, 5000)
        for version in (1, 2, 3)
    ),
    body({"n": 0}, reply_to="{test.planner}:reply:" + "0" * 32),
    body({"n": 0}, to="broadcast"),
    b"\x00" * (2 << 20),
)
HEADERS = (
    b'{"origin":"\xff"}',
    b'{"origin":"x"}',
    b'{"origin":5}',
    b'{"origin":"1-1","attempts":"x"}',
    b'{"attempts":1e308}',
    b'{"attempts":-5}',
    b'{"fence":1e400}',
    b'{"attempts":true}',
    b'{"a":NaN}',
    b"[1]",
    b"null",
    b"",
    b"[" * 100_000,
    b'{"origin":"99999999999999999999-99999999999999999999"}',
)
anything = st.one_of(st.binary(max_size=30), st.sampled_from(HEADERS), st.sampled_from(BODIES))
names = st.one_of(st.sampled_from([b"m", b"x", b"s", b"t", b"p"]), st.binary(max_size=5))
entries = st.lists(st.tuples(names, anything), min_size=1, max_size=6).map(
    lambda pairs: [x for p in pairs for x in p]
)


@pytest.mark.parametrize("retries", [False, True], ids=["main", "retries"])
async def test_each_body_and_header_harms_its_own_entry_alone(hostile: Hostile, *, retries: bool) -> None:
    key = hostile.keys.retry("coder") if retries else hostile.keys.stream
    for data in BODIES:
        await hostile.add(key, [b"m", data])
    for header in HEADERS:
        await hostile.add(
            key, [b"m", body({"n": -1}), b"x", header, b"t", header, b"s", header, b"p", header]
        )
    await hostile.goes_on()


async def test_a_header_that_is_no_text_ends_no_consumer(hostile: Hostile) -> None:
    """Its handler fails once; the entry that is retried has the origin that the server knows."""
    await hostile.add(
        hostile.keys.stream, [b"m", body({"n": "x"}, schema_version=2), b"x", b'{"origin":"\xff"}']
    )
    await hostile.add(hostile.keys.retry("coder"), [b"m", body({"n": 7}), b"x", b'{"origin":"\xff"}'])
    await hostile.goes_on()
    assert 7 in hostile.handled


@pytest.mark.parametrize("depth", [300, 600, 950])
async def test_what_is_too_deep_for_a_contract_or_an_upcaster_is_a_dead_letter_with_a_reason(
    hostile: Hostile, depth: int
) -> None:
    await hostile.add(hostile.keys.stream, [b"m", nested(depth, schema_version=1)])
    await hostile.goes_on()
    (letter,) = await hostile.topology.dead_letters(hostile.group)
    assert letter["reason"] in (b"Malformed", b"InvalidPayload", b"ContractViolated")
    assert letter["error"]


async def test_a_message_that_the_stream_does_not_take_is_a_dead_letter_with_its_size(
    hostile: Hostile,
) -> None:
    large = body({"n": 1, "text": "x" * (1 << 20)})
    await hostile.add(hostile.keys.stream, [b"m", large])
    await hostile.add(hostile.keys.retry("coder"), [b"m", large])
    await hostile.goes_on()
    letters = await hostile.topology.dead_letters(hostile.group)
    assert {letter["reason"] for letter in letters} == {b"TooLarge"}
    assert {len(letter["m"]) for letter in letters} == {len(large)}
    assert str(len(large)).encode() in letters[0]["error"]


@settings(max_examples=50)
@given(main=st.lists(entries, max_size=4), retried=st.lists(entries, max_size=4))
@example(main=[], retried=[[b"m", body({"n": 1}), b"x", b'{"origin":"\xff"}']])
@example(main=[[b"m", nested(400, schema_version=1)]], retried=[])
async def test_whatever_is_in_entries_the_next_message_is_handled(
    hostile: Hostile, main: list[Fields], retried: list[Fields]
) -> None:
    for key, added in ((hostile.keys.stream, main), (hostile.keys.retry("coder"), retried)):
        for fields in added:
            await hostile.add(key, fields)
    await hostile.goes_on()


# the kernel kills what takes more memory than its cgroup has; so does this
PROGRAM = """
import asyncio, os, signal, sys, threading
from agentstream import Agent, Message
KILLS, LIMIT = int(sys.argv[1]), int(sys.argv[2])
def watch():
    while True:
        with open("/proc/self/statm") as memory:
            if int(memory.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") > LIMIT:
                os.kill(os.getpid(), signal.SIGKILL)
if LIMIT:
    threading.Thread(target=watch, daemon=True).start()
def upcast(payload):
    if payload["n"] == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    return payload
class Work(__import__("msgspec").Struct):
    __schema_version__ = 2
    n: int
agent = Agent.from_env()
agent.upcast("event", from_version=1)(upcast)
@agent.on("event")
async def handle(work: Work):
    os.write(1, f"{work.n}\\n".encode())
    if work.n == 999:
        agent.stop()
asyncio.run(agent.run())
"""


async def starts_of(topology: Topology, kills: int, limit: int, most: int) -> tuple[int, list[int]]:
    """Starts a program again and again, as a kubelet does, until it handled the last message: 999.

    Returns how often it was started, and what was handled.
    """
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": "coder-7",
    }
    handled: list[int] = []
    for start in range(1, most + 1):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(kills), str(limit)),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        handled += [int(line) for line in output.split()]
        if process.returncode == 0:
            return start, handled
    raise AssertionError(f"killed at {most} starts; handled {handled}")


async def test_what_kills_a_process_before_a_handler_has_it_is_counted_and_given_up(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000, max_deliveries=3)
    for n in (0, 1, 13, 2, 3, 999):
        await topology.add_raw(group.key, body({"n": n}, schema_version=1))
    starts, handled = await starts_of(topology, kills=13, limit=0, most=8)
    # at least once: what ran beside it, before it was suspected, may have been handled again
    assert set(handled) == {0, 1, 2, 3, 999}
    assert starts <= 4
    (letter,) = await topology.dead_letters(group)
    assert (letter["reason"], letter["attempts"]) == (b"MaxDeliveries", b"3")


async def test_entries_that_are_larger_than_the_memory_of_a_process_end_none_of_its_starts(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    for n in range(3):
        await topology.add_raw(group.key, body({"n": n}))
    large = body({"n": -1, "text": "x" * (20 << 20)})
    for _ in range(12):
        await topology.add_raw(group.key, large)
    await topology.add_raw(group.key, body({"n": 999}))
    starts, handled = await starts_of(topology, kills=-1, limit=200 << 20, most=12)
    assert (starts, sorted(handled)) == (1, [0, 1, 2, 999])
    dead_letters = StreamKeys(group.key).dead_letters("coder")
    assert await topology.wire.call("XLEN", dead_letters) == 12
    ((_, fields),) = await topology.wire.call("XRANGE", dead_letters, "-", "+", "COUNT", 1)
    assert fields_of(fields)["reason"] == b"TooLarge"
