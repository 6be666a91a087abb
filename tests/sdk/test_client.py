"""The connection: whose reply is whose, how much of it is under way, and what is published arrives."""

from __future__ import annotations

import asyncio
import signal
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentstream.errors import AccessDenied, ConnectionLost, ServerRefused
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.peers import listening, relaying, slow
from support.servers import Server
from support.waiting import until

LUA = """#!lua name=probe
redis.register_function('probe', function(keys) return redis.call('INCR', keys[1]) end)
"""


async def test_a_closed_connection_takes_no_more_commands(server: Server) -> None:
    wire = Client(lambda: Endpoint(server.url), name="closing")
    assert await wire.call("PING") == b"PONG"
    blocked = asyncio.create_task(wire.call("BLPOP", "{a}", 10))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(wire.call("PING"))
    await asyncio.sleep(0)
    await wire.close()
    errors = await asyncio.gather(blocked, waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ConnectionLost, ConnectionLost]
    assert "closing" not in server.connections()
    with pytest.raises(ConnectionLost, match="is closed"):
        await wire.call("PING")


async def test_a_caller_that_is_gone_leaves_the_replies_of_others_in_order(wire: Client) -> None:
    await wire.call("PING")
    calls = [asyncio.create_task(wire.call("ECHO", n)) for n in range(5)]
    refused = asyncio.create_task(wire.call("NOPE"))
    await until(lambda: not wire._queue)
    for gone in (calls[1], refused):
        gone.cancel()
    assert [await call for n, call in enumerate(calls) if n != 1] == [b"0", b"2", b"3", b"4"]
    assert await wire.call("ECHO", "next") == b"next"


async def test_a_caller_that_is_gone_before_its_command_left_takes_it_back(wire: Client) -> None:
    await wire.call("PING")
    before, gone, after = (asyncio.create_task(wire.call("INCR", "{a}:stats:n")) for _ in range(3))
    await asyncio.sleep(0)
    gone.cancel()
    assert [await before, await after] == [1, 2]
    await wire.call("DEL", "{a}:stats:n")


async def test_calls_from_before_and_after_connecting_are_carried_out_in_their_order(wire: Client) -> None:
    calls = [asyncio.create_task(wire.call("RPUSH", "{a}:stats:l", n)) for n in range(50)]
    while wire.connects == 0:
        calls.append(asyncio.create_task(wire.call("RPUSH", "{a}:stats:l", len(calls))))
        await asyncio.sleep(0)
    calls.append(asyncio.create_task(wire.call("RPUSH", "{a}:stats:l", len(calls))))
    assert await asyncio.gather(*calls) == [n + 1 for n in range(len(calls))]
    listed = await wire.call("LRANGE", "{a}:stats:l", 0, -1)
    assert [int(n) for n in listed] == list(range(len(calls)))
    await wire.call("DEL", "{a}:stats:l")


async def test_commands_of_one_tick_leave_in_one_write(wire: Client) -> None:
    await wire.call("PING")
    before = wire.round_trips
    await asyncio.gather(*(wire.call("PING") for _ in range(100)))
    assert wire.round_trips == before + 1


async def test_commands_do_not_wait_for_replies_to_others(wire: Client) -> None:
    blocked = asyncio.create_task(wire.call("BLPOP", "{a}:stats:l", 10))
    await until(lambda: wire.connects == 1 and not wire._queue)
    pushed = asyncio.create_task(wire.call("PING"))
    await until(lambda: wire.round_trips == 3)
    assert not pushed.done()
    blocked.cancel()
    await wire.close()
    with pytest.raises(ConnectionLost):
        await pushed


async def test_an_error_reply_is_an_error_of_its_own_command_only(wire: Client) -> None:
    refused, echoed = await asyncio.gather(wire.call("NOPE"), wire.call("ECHO", 1), return_exceptions=True)
    assert isinstance(refused, ServerRefused)
    assert echoed == b"1"


async def test_what_no_command_can_have_is_an_error_of_its_own_command_only(wire: Client) -> None:
    bad, worse, good = await asyncio.gather(
        wire.call("ECHO", None),  # type: ignore[arg-type]
        wire.call("ECHO", "\ud800"),
        wire.call("ECHO", "é"),
        return_exceptions=True,
    )
    assert (type(bad), type(worse)) == (TypeError, UnicodeEncodeError)
    assert good == "é".encode()


async def test_a_right_that_a_function_lacks_is_access_denied(server: Server, wire: Client) -> None:
    await wire.call("FUNCTION", "LOAD", "REPLACE", LUA)
    await wire.call("ACL", "SETUSER", "agent", "on", ">secret", "~*", "-@all", "+fcall")
    user = Client(lambda: Endpoint(server.url, "agent", "secret"), name="agent")
    with pytest.raises(AccessDenied):
        await user.call("FCALL", "probe", 1, "{a}:stats:n")
    await user.close()


async def test_replies_that_come_byte_by_byte_are_whole(server: Server) -> None:
    async with listening(relaying(server.port, lambda data: (bytes([b]) for b in data))) as port:
        wire = Client(lambda: Endpoint(f"redis://127.0.0.1:{port}"), name="drip")
        replies = await asyncio.gather(
            wire.call("ECHO", "two\r\nlines"), wire.call("EVAL", "return {1, {false, 'a'}, ''}", 0)
        )
        assert replies == [b"two\r\nlines", [1, [None, b"a"], b""]]
        await wire.close()


async def test_half_a_reply_is_none(server: Server) -> None:
    def cut_in_the_middle(data: bytes) -> list[bytes | None]:
        return [data[: data.index(b"middle") + 3], None] if b"middle" in data else [data]

    async with listening(relaying(server.port, cut_in_the_middle)) as port:
        wire = Client(lambda: Endpoint(f"redis://127.0.0.1:{port}"), name="half")
        assert await wire.call("ECHO", 1) == b"1"
        replies = await asyncio.gather(
            *(wire.call("ECHO", word) for word in ("start", "middle", "end")), return_exceptions=True
        )
        assert replies[0] == b"start"
        assert [type(reply) for reply in replies[1:]] == [ConnectionLost, ConnectionLost]
        assert await wire.call("ECHO", "again") == b"again"
        assert wire.connects == 2
        await wire.close()


async def test_a_broken_connection_fails_what_was_sent_and_is_made_again(
    server: Server, proxy: Faults
) -> None:
    wire = Client(lambda: Endpoint(proxy.url), name="cut")
    assert await wire.call("PING") == b"PONG"
    blocked = [asyncio.create_task(wire.call("BLPOP", "{a}", 10)) for _ in range(3)]
    await until(lambda: not wire._queue)
    proxy.cut()
    errors = await asyncio.gather(*blocked, return_exceptions=True)
    assert [type(error) for error in errors] == [ConnectionLost] * 3
    assert await wire.call("PING") == b"PONG"
    await wire.close()


async def test_a_lost_reply_is_never_asked_for_again(server: Server, proxy: Faults, wire: Client) -> None:
    lossy = Client(lambda: Endpoint(proxy.url), name="lossy")
    proxy.lose_reply("INCR")
    with pytest.raises(ConnectionLost):
        await lossy.call("INCR", "{a}:stats:n")
    assert await lossy.call("GETDEL", "{a}:stats:n") == b"1"
    await lossy.close()


async def test_silence_breaks_the_connection(server: Server) -> None:
    wire = Client(lambda: Endpoint(server.url), name="silent", timeout=0.3)
    for _ in range(4):
        # together they take longer than any may
        assert await wire.call("BLPOP", "{a}", 0.1) is None
    blocked = [asyncio.create_task(wire.call("BLPOP", "{a}", 10)) for _ in range(2)]
    with pytest.raises(ConnectionLost, match=r"no reply for 0\.3 s"):
        await blocked[0]
    with pytest.raises(ConnectionLost):
        await blocked[1]
    assert await wire.call("PING") == b"PONG"
    assert wire.connects == 2
    await wire.close()


async def test_what_takes_long_to_travel_is_no_silence(server: Server) -> None:
    value = b"x" * 24_000_000
    async with listening(slow(server.port, rate=12e6)) as port:
        wire = Client(lambda: Endpoint(f"redis://127.0.0.1:{port}"), name="slow", timeout=1.0)
        assert await wire.call("EVAL", "return #ARGV[1]", 0, value) == len(value)
        assert wire.connects == 1
        await wire.close()


async def test_fifty_thousand_callers_get_their_own_replies_in_bounded_memory(wire: Client) -> None:
    word = b"x" * 10_000
    await wire.call("PING")

    async def length(n: int) -> int:
        before, replied = n, await wire.call("EVAL", "return #ARGV[1] + ARGV[2]", 0, word, n)
        return int(replied) - before

    calls = [asyncio.create_task(length(n)) for n in range(50_000)]
    # what callers and their futures take is there before anything is sent
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        assert set(await asyncio.gather(*calls)) == {len(word)}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # packed at once, the commands would take 500 MB
    assert peak < 50e6


async def test_a_server_that_does_not_read_holds_callers_back(private_server: Server) -> None:
    wire = Client(lambda: Endpoint(private_server.url), name="slow", timeout=30)
    await wire.call("PING")
    assert private_server.process is not None
    private_server.process.send_signal(signal.SIGSTOP)
    value = b"x" * 100_000
    calls = [asyncio.create_task(wire.call("SETEX", f"{{a}}:once:{n % 7}", 60, value)) for n in range(2000)]
    connection = wire._connection
    assert connection is not None
    await until(lambda: connection._full)
    assert connection._transport.get_write_buffer_size() < 1e6
    assert len(wire._queue) > 1000
    private_server.process.send_signal(signal.SIGCONT)
    assert set(await asyncio.gather(*calls)) == {b"OK"}
    await wire.close()


async def test_what_was_held_back_goes_out_on_the_next_connection(private_server: Server) -> None:
    wire = Client(lambda: Endpoint(private_server.url), name="slow", timeout=30)
    await wire.call("PING")
    assert private_server.process is not None
    private_server.process.send_signal(signal.SIGSTOP)
    value = b"x" * 1_000_000
    calls = [asyncio.create_task(wire.call("SETEX", f"{{a}}:once:{n}", 60, value)) for n in range(50)]
    connection = wire._connection
    assert connection is not None
    await until(lambda: connection._full)
    held_back = len(wire._queue)
    connection._transport.abort()
    private_server.process.send_signal(signal.SIGCONT)
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(reply) for reply in replies[: 50 - held_back]] == [ConnectionLost] * (50 - held_back)
    assert replies[50 - held_back :] == [b"OK"] * held_back
    await wire.close()


REPLIES_LUA = """#!lua name=probe
redis.register_function('probe', function() return {false, 1, 'a', {}, {'b', {ok = 'fine'}}, true} end)
redis.register_function('probe_null', function() return false end)
"""


class Listener:
    """A wire that listens, and what it heard."""

    def __init__(self, endpoint: Callable[[], Endpoint], *channels: str, timeout: float = 5.0) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self._channels = channels
        self.wire = Client(endpoint, name="listener", timeout=timeout, listener=self)

    def channels(self) -> tuple[str, ...]:
        return self._channels

    def pushed(self, channel: bytes, data: bytes) -> None:
        self.heard.append((channel, data))


@pytest.fixture
async def listener(proxy: Faults) -> AsyncIterator[Listener]:
    made = Listener(lambda: Endpoint(proxy.url), "one", "two")
    made.wire.open()
    yield made
    await made.wire.close()


async def published(wire: Client, channel: str, data: str) -> bool:
    """Publishes, and says whether anybody heard it."""
    return bool(await wire.call("PUBLISH", channel, data))


async def test_what_is_published_is_heard_between_replies(listener: Listener, wire: Client) -> None:
    await until(lambda: published(wire, "one", "first"))
    replies = await asyncio.gather(*(listener.wire.call("PUBLISH", "two", n) for n in range(3)))
    assert replies == [1, 1, 1]
    await until(lambda: len(listener.heard) == 4)
    assert listener.heard == [(b"one", b"first"), (b"two", b"0"), (b"two", b"1"), (b"two", b"2")]
    assert await wire.call("PUBLISH", "three", "x") == 0


async def test_a_broken_connection_is_made_again_without_being_asked(
    listener: Listener, proxy: Faults, wire: Client
) -> None:
    await listener.wire.call("PING")
    proxy.cut()
    await until(lambda: listener.wire.connects == 2)
    await until(lambda: published(wire, "one", "after"))
    await until(lambda: (b"one", b"after") in listener.heard)
    with proxy.refuse():
        await until(lambda: listener.wire._again is not None)
    await until(lambda: published(wire, "two", "later"))
    await until(lambda: (b"two", b"later") in listener.heard)


async def test_a_server_that_is_away_at_first_is_found_later(private_server: Server, caplog: Any) -> None:
    private_server.kill()
    listener = Listener(lambda: Endpoint(private_server.url), "one")
    listener.wire.open()
    await until(lambda: "cannot listen as listener" in caplog.text)
    private_server.start()
    await until(lambda: "can listen as listener again" in caplog.text)
    with private_server.admin() as admin:
        assert admin.publish("one", "x") == 1
    await until(lambda: listener.heard == [(b"one", b"x")])
    await listener.wire.close()


async def test_a_silent_server_is_noticed_although_nobody_calls(proxy: Faults, wire: Client) -> None:
    listener = Listener(lambda: Endpoint(proxy.url), "one", timeout=0.4)
    listener.wire.open()
    await until(lambda: listener.wire._connection is not None)
    first = listener.wire._connection
    # a server that is there and has nothing to say is asked now and then, and kept
    await until(lambda: first.writes >= 4)
    assert listener.wire.connects == 1
    with proxy.hold():
        await until(lambda: first.error is not None)
    await until(lambda: listener.wire.connects == 2)
    assert await listener.wire.call("PING") == b"PONG"
    await listener.wire.close()


async def test_a_channel_that_one_may_not_listen_to_is_access_denied(server: Server, wire: Client) -> None:
    await wire.call("ACL", "SETUSER", "agent", "on", ">secret", "~*", "+@all", "resetchannels", "&one")
    listener = Listener(lambda: Endpoint(server.url, "agent", "secret"), "one", "two")
    with pytest.raises(AccessDenied, match="NOPERM"):
        await listener.wire.call("PING")
    await listener.wire.close()


async def test_without_any_channel_it_is_a_connection_like_others(server: Server) -> None:
    listener = Listener(lambda: Endpoint(server.url))
    assert await listener.wire.call("ECHO", "x") == b"x"
    await listener.wire.close()


async def test_a_listener_that_fails_harms_nobody(server: Server, wire: Client) -> None:
    class Failing(Listener):
        def pushed(self, channel: bytes, data: bytes) -> None:
            raise ValueError(f"{channel.decode()}: {data.decode()}")

    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))
    failing = Failing(lambda: Endpoint(server.url), "one").wire
    assert await failing.call("PUBLISH", "one", "wrong") == 1
    assert await failing.call("PING") == b"PONG"
    await until(lambda: [str(error) for error in said] == ["one: wrong"])
    assert failing.connects == 1
    await failing.close()


async def test_functions_reply_the_same_to_a_connection_that_listens(server: Server, wire: Client) -> None:
    await wire.call("FUNCTION", "LOAD", "REPLACE", REPLIES_LUA)
    listener = Listener(lambda: Endpoint(server.url), "one")
    for function in ("probe", "probe_null"):
        assert await listener.wire.call("FCALL", function, 0) == await wire.call("FCALL", function, 0)
    assert await wire.call("FCALL", "probe", 0) == [None, 1, b"a", [], [b"b", b"fine"], 1]
    assert await wire.call("FCALL", "probe_null", 0) is None
    await listener.wire.close()
