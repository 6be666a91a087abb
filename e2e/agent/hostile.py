"""Does everything that an agent's credentials allow to harm others, at a bounded pace, for a while.

A password is what it has, that of a producer and consumer of one stream of its own. It ends with one line of
JSON: of each attack, how often it was carried out, and how often the server refused it or cut it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from agentstream.errors import AgentStreamError
from agentstream.identity.settings import Settings
from agentstream.protocol.keys import StreamKeys, default_stream_key, notify_channel, reply_key
from agentstream.transport.client import Client

SECONDS = float(os.environ["DURATION"])
METRICS = os.environ["METRICS_HOST"]
STREAM, AGENT = "tasks", "mallory"
# what it fills of the server's memory at one time, all together: a server has no quota for a user
MIB = 1 << 20

_settings = Settings.from_env()
_keys = StreamKeys(default_stream_key(_settings.namespace, STREAM))
_random = random.Random(7)

ODD: Sequence[str | bytes] = (
    *("", "-1", "-2", "0", "1", "2", "1e18", "-1e18", "0.5", "nan", "inf", "-inf", "0x10", "abc", "9" * 400),
    *(
        "9" * 5_000,
        "18446744073709551615-18446744073709551615",
        "0-0",
        "-",
        "+",
        ">",
        "*",
        "[]",
        "{}",
        "null",
    ),
    *(b"\xff\xfe", b"\x00", b"[" * 5_000, b"x" * 100_000, "running ", "done", "retrying", "coder", AGENT),
    *(_keys.stream, _keys.retry(AGENT), _keys.stats(AGENT), _keys.delay(AGENT), _keys.parked(AGENT)),
)

_GROUP = (AGENT, "c", _keys.stats(AGENT))
# as the SDK calls them; each call has some of the arguments replaced
CALLS: Sequence[tuple[str, ...]] = (
    ("as1_add", _keys.stream, _keys.sent("t"), "0", "1000", _keys.gate, _keys.order, "x", "-2"),
    ("as1_add", _keys.stream, _keys.sent("t"), "0", "1000", _keys.gate, _keys.order, "x", "1e18"),
    ("as1_add", _keys.stream, _keys.sent("t"), "1", "1000", _keys.gate, _keys.order, "x", "2", "ttl", "-1"),
    ("as1_settle", _keys.stream, *_GROUP, "", "0", "acked", "1-1", "1"),
    ("as1_retry", _keys.stream, *_GROUP, _keys.delay(AGENT), "1-1", "1", "1000", "reason", "error"),
    ("as1_dead_letter", _keys.stream, *_GROUP, _keys.dead_letters(AGENT), "1-1", "1", "reason", "error"),
    ("as1_sweep", _keys.stream, *_GROUP, _keys.retry(AGENT), _keys.delay(AGENT), "100000000", "1"),
    ("as1_take", _keys.stream, *_GROUP, "0", "c", "-", "100000000"),
    ("as1_begin", _keys.stream, *_GROUP, "1-1", "1"),
    ("as1_renew", _keys.stream, *_GROUP, "1-1"),
    ("as1_release", _keys.stream, *_GROUP, "1-1", "1"),
    ("as1_turn", _keys.stream, *_GROUP, *("1-1",) * 2_000),
    ("as1_once", _keys.stream, _keys.done(AGENT, "effect"), "t" * MIB, "begin", "1000"),
    ("as1_reply", reply_key(_settings.namespace, AGENT, "0" * 32), "1000", "m", "x"),
)


def attack(pause: float) -> Callable[[Attack], Attack]:
    """Has an attack carried out again and again, with so many seconds in between."""

    def note(one: Attack) -> Attack:
        ATTACKS[one.__name__] = (one, pause)
        return one

    return note


Attack = Callable[[Client], Awaitable[object]]
ATTACKS: dict[str, tuple[Attack, float]] = {}


@attack(0.02)
async def functions_with_odd_arguments(wire: Client) -> None:
    name, key, *arguments = _random.choice(CALLS)
    words: list[str | bytes] = [*arguments]
    for _ in range(_random.randrange(4)):
        words[_random.randrange(len(words))] = _random.choice(ODD)
    words += [_random.choice(ODD) for _ in range(_random.randrange(3))]
    await wire.call("FCALL", name, 1, key, *words)


@attack(0.1)
async def entries_that_nobody_can_read(wire: Client) -> None:
    body = json.dumps({"v": 1, "from": AGENT, "to": AGENT, "type": "event", "timestamp": 0, "payload": {}})
    entry = _random.choice(
        (
            ("m", body, "x", b'{"origin":"\xff"}'),
            ("m", body, "x", '{"origin":"garbage","a":NaN}'),
            ("m", b"\xff", "x", "[" * 5_000),
            ("m", "[" * 100_000),
            tuple(word for n in range(2_000) for word in (f"f{n}", "x")),
        )
    )
    await wire.call("XADD", _keys.stream, "MAXLEN", "~", 1_000, "*", *entry)


@attack(0.2)
async def counters_that_are_none(wire: Client) -> None:
    fields = ("settled", "acked", "failed", "le:1", "forget:at " + "x" * 100, f"junk{_random.random()}")
    await wire.call("HSET", _keys.stats(AGENT), _random.choice(fields), _random.choice(ODD))
    await wire.call("HSET", _keys.parked(AGENT), _random.choice(ODD), _random.choice(ODD))
    await wire.call("ZADD", _keys.delay(AGENT), 0, _random.choice(ODD))
    await wire.call("HSET", _keys.order, _random.choice(ODD), _random.choice(ODD))


@attack(0.05)
async def consumers_without_end(wire: Client) -> None:
    await wire.call(
        "XREADGROUP", "GROUP", AGENT, f"c.{_random.random()}", "COUNT", 1, "STREAMS", _keys.stream, ">"
    )


@attack(0.5)
async def the_work_of_its_own_stream_undone(wire: Client) -> None:
    await wire.call("XADD", _keys.stream, "MAXLEN", "=", 0, "*", "m", "x")
    await wire.call("XCLAIM", _keys.stream, AGENT, "c", 0, "1-1", "LASTID", "99999999999999-0")


@attack(1.0)
async def replies_that_nobody_asked_for(wire: Client) -> None:
    token = f"{_random.getrandbits(128):032x}"
    await wire.call(
        "FCALL", "as1_reply", 1, reply_key(_settings.namespace, "x", token), 2_000, "m", b"x" * MIB
    )


@attack(1.0)
async def notifications_of_many_megabytes(wire: Client) -> None:
    await wire.call("PUBLISH", notify_channel("agentstream", _settings.namespace, AGENT), b"x" * 12 * MIB)


@attack(5.0)
async def one_argument_of_64_mb(_: Client) -> None:
    async with _connection() as (reader, writer):
        writer.write(b"*3\r\n$4\r\nXADD\r\n$1\r\nx\r\n$67108864\r\n")
        await reader.read(100)


@attack(6.0)
async def replies_that_it_does_not_read(_: Client) -> None:
    # until it is cut off. Not all at once: the server carries out one command at a time, whosever it is, and
    # what an agent may read it may read again and again; no setting and no right bounds that
    key = _keys.stream.encode()
    ask = b"*4\r\n$6\r\nXRANGE\r\n$%d\r\n%s\r\n$1\r\n-\r\n$1\r\n+\r\n" % (len(key), key)
    async with _connection() as (_, writer):
        for _ in range(200):
            writer.write(ask)
            await writer.drain()
            await asyncio.sleep(0.05)


@attack(2.0)
async def commands_that_never_end(_: Client) -> None:
    async with _connection() as (_, writer):
        writer.write(b"*1000000\r\n$4\r\nPING\r\n")
        for _ in range(8):
            writer.write(b"$4194304\r\n" + bytes(4 * MIB) + b"\r\n")
            await writer.drain()


@attack(5.0)
async def connections_without_a_password(_: Client) -> None:
    target = _settings.endpoint().target()
    async with contextlib.AsyncExitStack() as many:
        for _ in range(500):
            _, writer = await asyncio.open_connection(target.host, target.port)
            many.callback(writer.close)
        await asyncio.sleep(3)


@attack(5.0)
async def requests_that_never_end(_: Client) -> None:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with contextlib.AsyncExitStack() as many:
        for number in range(200):
            # half of them do not even shake hands
            context = trusting if number % 2 else None
            _, writer = await asyncio.open_connection(METRICS, 443, ssl=context)
            many.callback(writer.close)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: " if context else b"\x16\x03\x01\x02")
        await asyncio.sleep(4)


@contextlib.asynccontextmanager
async def _connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of its own to the server, as its user, that nobody reads."""
    target = _settings.endpoint().target()
    reader, writer = await asyncio.open_connection(target.host, target.port, limit=1 << 10)
    try:
        name, password = (target.username or "").encode(), (target.password or "").encode()
        writer.write(
            b"*3\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name, len(password), password)
        )
        await reader.readuntil(b"\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


async def repeat(name: str, until: float, said: Counter[str]) -> None:
    """Carries out one attack until a time."""
    one, pause = ATTACKS[name]
    wire = Client(_settings.endpoint, name=name, timeout=10.0)
    while time.monotonic() < until:
        with contextlib.suppress(AgentStreamError, OSError, EOFError):
            said[f"{name}: refused"] += 1
            async with asyncio.timeout(20):
                await one(wire)
            said[f"{name}: refused"] -= 1
        said[name] += 1
        await asyncio.sleep(pause)
    await wire.close()


async def main() -> None:
    """Attacks for as long as it is told to."""
    said: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as all_at_once:
        for name in ATTACKS:
            all_at_once.create_task(repeat(name, until, said))
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main())
