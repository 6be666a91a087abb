"""Each fault does what it says, to whole commands and replies, however their bytes are cut."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import ConnectionLost
from agentstream.testing import Faults, block_loop
from agentstream.testing.faults import Frames
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server, free_port
from support.waiting import until


@pytest.fixture
def faults(server: Server) -> Iterator[Faults]:
    with Faults(server.port) as running:
        yield running


@pytest.fixture
async def agent(faults: Faults) -> AsyncIterator[Client]:
    """A connection through the faults."""
    connection = Client(lambda: Endpoint(faults.url), name="agent")
    yield connection
    await connection.close()


async def outcomes(agent: Client, *commands: tuple[str, ...]) -> list[object]:
    """What becomes of commands that are sent in one write: the reply, or the kind of the error."""
    replies = await asyncio.gather(*(agent.call(*command) for command in commands), return_exceptions=True)
    return [type(reply) if isinstance(reply, Exception) else reply for reply in replies]


async def test_only_the_reply_to_the_command_that_is_named_is_lost(
    faults: Faults, agent: Client, wire: Client
) -> None:
    await agent.call("PING")
    faults.lose_reply("second")
    names = [("SET", name, "1") for name in ("first", "second", "third")]
    assert await outcomes(agent, *names) == [b"OK", ConnectionLost, ConnectionLost]
    assert await wire.call("EXISTS", "first", "second") == 2
    assert await agent.call("PING") == b"PONG"
    assert faults.lost == 1
    await wire.call("DEL", "first", "second", "third")


async def test_a_reply_is_lost_as_often_as_is_asked_for(faults: Faults, agent: Client) -> None:
    faults.lose_reply(b"ECHO", times=2)
    for lost in (1, 2):
        with pytest.raises(ConnectionLost):
            await agent.call("ECHO", "a")
        assert faults.lost == lost
    assert await agent.call("ECHO", "a") == b"a"


async def test_a_command_that_is_lost_is_not_carried_out(faults: Faults, agent: Client, wire: Client) -> None:
    faults.lose_command("SET")
    with pytest.raises(ConnectionLost):
        await agent.call("SET", "lost", "1")
    assert faults.lost == 1
    assert await wire.call("EXISTS", "lost") == 0
    assert await agent.call("PING") == b"PONG"


async def test_a_large_command_is_recognised_in_several_pieces(
    faults: Faults, agent: Client, wire: Client
) -> None:
    faults.lose_reply("in-the-end")
    with pytest.raises(ConnectionLost):
        await agent.call("SET", "large", "x" * 3_000_000 + "in-the-end")
    assert await wire.call("STRLEN", "large") == 3_000_010
    assert len(await agent.call("GET", "large")) == 3_000_010
    await wire.call("DEL", "large")


async def test_replies_are_late_by_what_is_asked_for_until_it_ends(faults: Faults, agent: Client) -> None:
    loop = asyncio.get_running_loop()
    await agent.call("PING")
    with faults.delay(0.1, jitter=0.1):
        started = loop.time()
        assert await outcomes(agent, *[("ECHO", str(n)) for n in range(50)]) == [
            str(n).encode() for n in range(50)
        ]
        assert loop.time() - started >= 0.1
    assert faults._latency == (0, 0)


async def test_a_silent_network_breaks_nothing_and_passes_everything_when_it_ends(
    faults: Faults, agent: Client, wire: Client
) -> None:
    await agent.call("PING")
    with faults.hold():
        asking = asyncio.create_task(agent.call("INCR", "held"))
        await asyncio.wait({asking}, timeout=0.1)
        assert not asking.done()
        assert await wire.call("EXISTS", "held") == 0
    assert await asking == 1
    assert agent.connects == 1
    await wire.call("DEL", "held")


async def test_a_silent_network_accepts_connections_that_nothing_comes_of(
    faults: Faults, agent: Client
) -> None:
    faults.hold()
    asking = asyncio.create_task(agent.call("PING"))
    await asyncio.wait({asking}, timeout=0.1)
    assert not asking.done()
    faults.release()
    assert await asking == b"PONG"


async def test_a_cut_breaks_what_is_connected_and_nothing_else(faults: Faults, agent: Client) -> None:
    await agent.call("PING")
    asking = asyncio.create_task(agent.call("BLPOP", "nothing", "0"))
    await asyncio.wait({asking}, timeout=0.05)
    faults.cut()
    with pytest.raises(ConnectionLost):
        await asking
    assert await agent.call("PING") == b"PONG"


async def test_a_server_that_is_away_is_away_until_it_is_back(faults: Faults, agent: Client) -> None:
    await agent.call("PING")
    with faults.refuse():
        for _ in range(3):
            with pytest.raises(ConnectionLost):
                await agent.call("PING")
    assert await agent.call("PING") == b"PONG"


async def test_healing_ends_all_faults_also_those_to_come(faults: Faults, agent: Client) -> None:
    faults.lose_reply("PING")
    faults.lose_command("PING")
    faults.delay(60)
    faults.refuse()
    faults.hold()
    faults.heal()
    assert await agent.call("PING") == b"PONG"
    assert faults.lost == 0


async def test_the_proxy_works_on_while_the_event_loop_is_blocked(faults: Faults, server: Server) -> None:
    loop = asyncio.get_running_loop()
    with server.admin() as direct:
        direct.ping()

    def ask_through_it() -> float:
        import redis  # noqa: PLC0415

        with redis.Redis(port=faults.port) as client:
            client.ping()
        return loop.time()

    answered: list[float] = []
    asking = threading.Thread(target=lambda: answered.append(ask_through_it()))
    asking.start()
    block_loop(0.5)
    assert asyncio.get_running_loop().time() - answered[0] > 0.1
    asking.join()


async def test_a_subscriber_gets_what_is_published(faults: Faults, server: Server, wire: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", faults.port)
    writer.write(b"SUBSCRIBE news\r\n")
    assert await reader.readuntil(b":1\r\n")
    faults.lose_reply("nothing that anybody says")
    for _ in range(2):
        await wire.call("PUBLISH", "news", "hello")
        assert (await reader.readuntil(b"hello\r\n")).startswith(b"*3")
    writer.close()
    await writer.wait_closed()


async def test_what_the_server_ends_ends(faults: Faults, agent: Client, wire: Client) -> None:
    await agent.call("PING")
    identity = await agent.call("CLIENT", "ID")
    await wire.call("CLIENT", "KILL", "ID", identity)
    await until(lambda: not faults._links)
    # the agent may not have read the end of its connection yet
    with contextlib.suppress(ConnectionLost):
        await agent.call("PING")
    assert await agent.call("CLIENT", "ID") != identity


async def test_without_a_server_connections_break() -> None:
    with Faults(free_port()) as faults:
        agent = Client(lambda: Endpoint(faults.url), name="agent")
        with pytest.raises(ConnectionLost):
            await agent.call("PING")
        await agent.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "agentstream faults"]


FRAMES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":7\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    b"*2\r\n*1\r\n*0\r\n*2\r\n:1\r\n$1\r\n\n\r\n",
    b"PING\r\n",
    b"_\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(9999999999999999999\r\n",
    b"=7\r\ntxt:a\r\n\r\n",
    b"!5\r\nERR x\r\n",
    b"~1\r\n+a\r\n",
    b">2\r\n+message\r\n*1\r\n:1\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
    b"%0\r\n",
    b"|1\r\n+ttl\r\n:9\r\n$1\r\nv\r\n",
]


@pytest.mark.parametrize("frame", FRAMES)
def test_each_kind_of_value_is_one_frame(frame: bytes) -> None:
    assert Frames().feed(frame) == [frame]


@given(frames=st.lists(st.sampled_from(FRAMES)), data=st.data())
def test_frames_are_the_same_in_whatever_pieces_they_come(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = Frames()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == frames


def test_what_connects_while_it_ends_leaves_no_socket() -> None:
    left: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "unraisablehook", lambda unraisable: left.append(unraisable.exc_value))
        for _ in range(60):
            with Faults(server.getsockname()[1]) as faults:
                clients = [socket.socket() for _ in range(20)]
                for client in clients:
                    client.setblocking(False)
                    client.connect_ex(("127.0.0.1", faults.port))
            for client in clients:
                client.close()
            gc.collect()
    assert left == []
