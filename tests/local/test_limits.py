"""The limits that chart and `agentstream dev` give their server: a connection harms itself alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from agentstream.errors import AgentStreamError
from agentstream.protocol import library
from agentstream.protocol.keys import nudge_channel
from agentstream.protocol.routes import Consumes, Produces
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.local.server.valkey import COPY_REPLIES, LIMITS
from agentstream_operator.plan.access import AgentUse
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from support.agents import PASSWORD, as_agent
from support.entries import add_command
from support.servers import Build, Server, builds
from support.topology import Topology, numbers
from support.waiting import until

MEMORY = 128 << 20
KEY, GROUP = "{test.tasks}", "coder"
HOSTILE = AgentUse(
    "test", "hostile", (Produces("tasks", KEY),), (Consumes("tasks", KEY, GROUP, broadcast=True),)
)


@pytest.fixture(params=builds(), ids=lambda build: build.name)
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server with the limits, and little memory."""
    build: Build = request.param
    lines = (*LIMITS, COPY_REPLIES) if build.name.startswith("valkey-9") else LIMITS
    words = [word for line in lines for word in _option(line)]
    own = Server(build, tmp_path, options=("--maxmemory", str(MEMORY), *words))
    own.start()
    with own.admin() as admin:
        admin.function_load(library.source())
    yield own
    own.kill()


def _option(line: str) -> tuple[str, ...]:
    name, *values = line.split()
    return f"--{name}", *values


@pytest.fixture
async def broker(limited: Server) -> AsyncIterator[Broker]:
    """The operator's connection, with a stream and a group."""
    broker = await Broker.connect(limited.url, installation="test")
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, GROUP, "0"))
    yield broker
    await broker.close()


def _pack(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _sender(server: Server) -> socket.socket:
    """A connection of the hostile agent, which is to read no more."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(_pack(b"AUTH", b"test.test.hostile", PASSWORD.encode()))
    assert connection.recv(100) == b"+OK\r\n"
    connection.settimeout(5)
    return connection


def _is_cut_off(connection: socket.socket, data: bytes) -> bool:
    """Whether the server has ended a connection, on which more is sent otherwise."""
    try:
        connection.sendall(data)
    except OSError:
        return True
    return False


async def test_who_sends_and_does_not_read_is_cut_off(limited: Server, broker: Broker) -> None:
    with limited.admin() as admin:
        for _ in range(40):
            admin.xadd(KEY, {"m": b"x" * (1 << 20)})
    async with as_agent(limited, broker, HOSTILE):
        with closing(_sender(limited)) as hostile:
            # 40 MiB each, of which it takes none
            ask = _pack(b"XRANGE", KEY.encode(), b"-", b"+")
            await until(lambda: _is_cut_off(hostile, ask))
        await others_go_on(limited, broker)


async def test_a_command_that_never_ends_is_cut_off(limited: Server, broker: Broker) -> None:
    async with as_agent(limited, broker, HOSTILE):
        with closing(_sender(limited)) as hostile:
            hostile.sendall(b"*1000000\r\n$4\r\nPING\r\n")
            argument = b"$8388608\r\n" + bytes(8 << 20) + b"\r\n"
            await until(lambda: _is_cut_off(hostile, argument))
        await others_go_on(limited, broker)


async def test_what_is_published_is_bounded(limited: Server, broker: Broker) -> None:
    channel = nudge_channel("test", "test", "hostile")
    async with as_agent(limited, broker, HOSTILE) as wire:
        with pytest.raises(AgentStreamError, match="larger than the server's proto-max-bulk-len"):
            await wire.call("PUBLISH", channel, bytes(64 << 20))
        with closing(_sender(limited)) as hostile, suppress(OSError):
            hostile.sendall(b"*3\r\n$7\r\nPUBLISH\r\n")
            hostile.sendall(b"$%d\r\n%s\r\n$67108864\r\n" % (len(channel), channel.encode()))
            assert hostile.recv(100).startswith(b"-ERR Protocol error: invalid bulk length")
        await others_go_on(limited, broker)


async def test_who_subscribes_and_does_not_read_is_cut_off(limited: Server, broker: Broker) -> None:
    channel = nudge_channel("test", "test", "hostile")
    async with as_agent(limited, broker, HOSTILE) as wire:
        with closing(_sender(limited)) as hostile:
            hostile.sendall(_pack(b"SUBSCRIBE", channel.encode()))

            async def nobody_listens() -> bool:
                return bool(await wire.call("PUBLISH", channel, bytes(8 << 20)) == 0)

            assert not await nobody_listens()
            await until(nobody_listens)
        await others_go_on(limited, broker)


async def others_go_on(server: Server, broker: Broker) -> None:
    """Asserts that the server has room, and that others use it."""
    honest = AgentUse("test", "honest", (Produces("tasks", KEY),), ())
    async with as_agent(server, broker, honest) as wire:
        added = await wire.call("FCALL", *add_command(KEY, "x", token="honest"))
        assert b"-" in added
    with server.admin() as admin:
        assert admin.info("memory")["used_memory"] < MEMORY
        assert admin.info("stats")["rejected_connections"] == 0


async def test_a_batch_as_large_as_a_consumer_reads_is_read(limited: Server, broker: Broker) -> None:
    with limited.admin() as admin:
        admin.config_set("maxmemory", 512 << 20)
        for _ in range(64):
            admin.xadd(KEY, {"m": b"x" * (1 << 20)})
    async with as_agent(limited, broker, HOSTILE) as wire:
        reply = await wire.call("XREADGROUP", "GROUP", GROUP, "c", "COUNT", 64, "STREAMS", KEY, ">")
        assert len(reply[0][1]) == 64
    with limited.admin() as admin:
        admin.config_set("maxmemory", MEMORY)


async def test_idle_connections_end_and_nothing_is_lost_or_noticed(limited: Server) -> None:
    wire = Client(lambda: Endpoint(limited.url), name="test")
    topology = Topology(wire, limited.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder")
    with limited.admin() as admin:
        admin.config_set("timeout", 1)
        async with topology.agent("planner") as planner, topology.agent("coder") as coder:
            async with coder.stream_consume("tasks") as deliveries, coder.notifications() as notes:
                for n in range(3):
                    await planner.send_message(to="coder", type="event", payload={"n": n})
                    assert await numbers(deliveries, 1) == [n]
                    await planner.notify("coder", {"n": n})
                    assert (await anext(aiter(notes))).payload == {"n": n}
                    # the next round begins on what the server has hung up
                    await until(lambda: not any("planner:write" in c["name"] for c in admin.client_list()))
                    # who listens or waits stays
                    stay = {
                        c["name"].rpartition(":")[2] for c in admin.client_list() if ".coder:" in c["name"]
                    }
                    assert {"push", "read"} <= {name.partition("-")[0] for name in stay}
    await wire.close()


def test_each_server_program_knows_every_limit(limited: Server) -> None:
    with limited.admin() as admin:
        said = admin.config_get(*(line.split()[0] for line in LIMITS))
    assert said["maxmemory-clients"] == "20%"
    assert said["proto-max-bulk-len"] == str(16 << 20)
    assert f"normal {128 << 20} {32 << 20} 30" in said["client-output-buffer-limit"]
    assert said["timeout"] == "300"


async def test_more_than_a_reply_may_be_is_read_again_in_smaller_parts(limited: Server) -> None:
    wire = Client(lambda: Endpoint(limited.url), name="test")
    topology = Topology(wire, limited.url)
    await topology.stream("tasks", "planner")
    group = await topology.group("tasks", "coder")
    count = 12
    with limited.admin() as admin:
        admin.config_set("maxmemory", 512 << 20)
        for n in range(count):
            # as only a producer without the SDK can: 144 MiB in all, which are handled or given up
            admin.xadd(KEY, {"m": _message(n, bytes(12 << 20))})
        admin.xadd(KEY, {"m": _message(count, b"")})
        async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
            handling = asyncio.create_task(numbers(deliveries, count + 2))
            await until(partial(topology.settled, group, count + 1), 60)
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)
    await wire.close()


def _message(n: int, junk: bytes) -> bytes:
    head = b'{"v":1,"id":"00000000-0000-4000-8000-%012x","from":"planner","to":"coder","type":"event",' % n
    return head + b'"timestamp":0,"payload":{"n":%d,"junk":"%s"}}' % (n, junk.replace(b"\0", b"x"))
