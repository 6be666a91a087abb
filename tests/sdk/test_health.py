"""What an agent tells probes follows its real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.telemetry import health
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.probes import ask
from support.servers import Server, free_port
from support.topology import Topology, following
from support.waiting import until


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_BEAT", 0.05)
    monkeypatch.setattr(health, "_BEAT_IN_TROUBLE", 0.05)


def probed(topology: Topology, name: str, port: int, **changes: str) -> Agent:
    settings = topology.settings(name, **changes)
    return Agent.connect(msgspec.structs.replace(settings, health_port=port))


def answers(port: int, status: int) -> Callable[[], bool]:
    return lambda: ask(port, "/readyz")[0] == status


async def test_an_agent_that_sends_nothing_yet_is_ready(server: Server, wire: Client, port: int) -> None:
    async with probed(Topology(wire, server.url), "planner", port):
        await until(answers(port, 200))
        assert await wire.call("PING") == b"PONG"


async def test_a_server_that_is_lost_and_comes_back(private_server: Server, port: int, quickly: None) -> None:
    wire = Client(lambda: Endpoint(private_server.url), name="test")
    topology = Topology(wire, private_server.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder")
    async with probed(topology, "coder", port) as coder, topology.agent("planner") as planner:
        async with coder.stream_consume("tasks") as deliveries:
            asking = asyncio.create_task(following(deliveries))
            await until(answers(port, 200))
            private_server.kill()
            await until(answers(port, 503))
            assert ask(port, "/readyz")[1].startswith("coder cannot use its server: redis://127.0.0.1:")
            assert ask(port, "/livez") == (200, "ok")
            private_server.start()
            await until(answers(port, 200))
            await planner.send_message(to="coder", type="event", payload={"n": 1})
            async with await asking as delivery:
                assert delivery.message.payload == {"n": 1}
    await wire.close()


async def test_credentials_that_are_refused_make_it_unready(
    server: Server, wire: Client, port: int, quickly: None
) -> None:
    url = server.url.replace("//", "//nobody:hidden@")
    async with probed(Topology(wire, server.url), "planner", port, url=url):
        await until(lambda: "cannot use its server" in ask(port, "/readyz")[1])
        status, text = ask(port, "/readyz")
        assert status == 503
        assert "WRONGPASS" in text or "invalid username" in text
        assert "hidden" not in text


async def test_an_agent_that_stops_is_alive_and_not_ready(
    server: Server, wire: Client, port: int, quickly: None
) -> None:
    topology = Topology(wire, server.url)
    await topology.stream("tasks", "planner")
    await topology.group("tasks", "coder")
    async with probed(topology, "coder", port) as coder, topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={})
        delivery = await following(coder.stream_consume("tasks"))
        await until(answers(port, 200))
        coder.stop()
        assert ask(port, "/readyz") == (503, "coder is stopping")
        assert ask(port, "/livez") == (200, "ok")
        assert await delivery.ack()
