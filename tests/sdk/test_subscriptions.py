"""A connection that also listens: what is published arrives, also after it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agentstream.errors import AccessDenied
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server
from support.waiting import until

LUA = """#!lua name=probe
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
    await wire.call("FUNCTION", "LOAD", "REPLACE", LUA)
    listener = Listener(lambda: Endpoint(server.url), "one")
    for function in ("probe", "probe_null"):
        assert await listener.wire.call("FCALL", function, 0) == await wire.call("FCALL", function, 0)
    assert await wire.call("FCALL", "probe", 0) == [None, 1, b"a", [], [b"b", b"fine"], 1]
    assert await wire.call("FCALL", "probe_null", 0) is None
    await listener.wire.close()
