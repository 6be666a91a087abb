"""An agent tells probes whether it lives and is ready, whatever its event loop does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from agentstream.agent import Agent
from agentstream.errors import ConnectionLost, SettingsError
from agentstream.identity.settings import Settings
from agentstream.telemetry import health
from agentstream.telemetry.health import Health
from support.probes import ask
from support.servers import free_port
from support.waiting import until

PLAIN = {
    "AGENTSTREAM_URL": "redis://127.0.0.1:1",
    "AGENTSTREAM_NAMESPACE": "team-a",
    "AGENTSTREAM_AGENT": "coder",
}


class Backend:
    """A server that answers or does not, and an agent that stops or does not."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.stopping = False
        self.pings = 0

    async def ping(self) -> None:
        self.pings += 1
        if self.error is not None:
            raise self.error

    def health(self, port: int, agent: str = "coder") -> Health:
        return Health(agent, port, self.ping, lambda: "is stopping" if self.stopping else "")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Asked often, for the tests' sake."""
    monkeypatch.setattr(health, "_BEAT", 0.02)
    monkeypatch.setattr(health, "_BEAT_IN_TROUBLE", 0.02)
    return Backend()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def listening_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agentstream health")]


async def test_it_is_ready_once_the_server_answered(port: int, backend: Backend) -> None:
    async with backend.health(port):
        assert ask(port, "/readyz") == (503, "coder is not connected yet")
        await until(lambda: ask(port, "/readyz") == (200, "ok"))
        assert ask(port, "/livez") == (200, "ok")


async def test_it_is_not_ready_while_the_server_does_not_answer(port: int, backend: Backend) -> None:
    async with backend.health(port):
        await until(lambda: ask(port, "/readyz")[0] == 200)
        backend.error = ConnectionLost("redis://host:1: refused")
        await until(lambda: ask(port, "/readyz")[0] == 503)
        assert ask(port, "/readyz")[1] == "coder cannot use its server: redis://host:1: refused"
        assert ask(port, "/livez")[0] == 200
        backend.error = None
        await until(lambda: ask(port, "/readyz")[0] == 200)


async def test_it_is_not_ready_while_it_stops(port: int, backend: Backend) -> None:
    async with backend.health(port):
        await until(lambda: ask(port, "/readyz")[0] == 200)
        backend.stopping = True
        assert ask(port, "/readyz") == (503, "coder is stopping")
        assert ask(port, "/livez")[0] == 200


async def test_a_loop_that_is_busy_for_a_while_is_alive(port: int, backend: Backend) -> None:
    async with backend.health(port):
        await until(lambda: ask(port, "/readyz")[0] == 200)
        pings, busy_until = backend.pings, time.monotonic() + 0.2
        while time.monotonic() < busy_until:
            assert (ask(port, "/livez")[0], ask(port, "/readyz")[0]) == (200, 200)
        assert backend.pings == pings


async def test_a_loop_that_is_blocked_for_too_long_is_dead_until_it_turns_again(
    port: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "BLOCKED_LIMIT", 0.3)
    async with backend.health(port):
        await until(lambda: ask(port, "/readyz")[0] == 200)
        deadline = time.monotonic() + 10
        while ask(port, "/livez")[0] == 200:
            assert time.monotonic() < deadline
        assert ask(port, "/livez") == (503, "coder: its event loop has been blocked for 0 s")
        assert ask(port, "/readyz")[0] == 503
        await until(lambda: ask(port, "/livez")[0] == 200)


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/livez?verbose", (200, "ok")),
        ("HEAD", "/livez", (200, "")),
        ("HEAD", "/nothing", (404, "")),
        ("GET", "/", (404, "ask for /livez, /readyz or /metrics")),
        ("POST", "/livez", (404, "ask for /livez, /readyz or /metrics")),
    ],
)
async def test_only_probes_are_answered(
    port: int, backend: Backend, method: str, path: str, answer: tuple[int, str]
) -> None:
    async with backend.health(port):
        assert ask(port, path, method) == answer


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_it_listens_on_all_addresses(port: int, backend: Backend) -> None:
    async with backend.health(port):
        assert ask(port, "/livez", host="::1") == (200, "ok")


async def test_where_there_is_no_ipv6_it_does_without(
    port: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    async with backend.health(port):
        assert ask(port, "/livez") == (200, "ok")


@pytest.mark.parametrize("sent", [b"", b"GET /li", b"\r\n\r\n", b"\xff\r\n\r\n", b"x" * 100_000])
async def test_what_is_no_request_disturbs_neither_probes_nor_the_end(
    port: int, backend: Backend, sent: bytes
) -> None:
    with socket.socket() as stranger:
        async with backend.health(port):
            stranger.connect(("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(sent)
            assert ask(port, "/livez") == (200, "ok")
            began = time.monotonic()
        assert time.monotonic() - began < 1
        assert not listening_threads()


async def test_who_asks_nothing_is_not_waited_for(
    port: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    async with backend.health(port):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
            assert silent.recv(1) == b""


async def test_at_the_end_port_and_thread_are_gone(port: int, backend: Backend) -> None:
    for _ in range(2):
        async with backend.health(port):
            assert listening_threads() == [f"agentstream health {port}"]
        assert is_free(port)
        assert not listening_threads()


async def test_agents_of_one_process_share_the_port_and_all_have_to_be_well(
    port: int, backend: Backend
) -> None:
    other = Backend()
    other.error = ConnectionLost("away")
    async with backend.health(port, "coder"):
        async with other.health(port, "planner"):
            await until(lambda: ask(port, "/readyz") == (503, "planner cannot use its server: away"))
            assert ask(port, "/livez")[0] == 200
            assert len(listening_threads()) == 1
        await until(lambda: ask(port, "/readyz") == (200, "ok"))
    assert is_free(port)


async def test_a_port_that_is_taken_is_named(port: int) -> None:
    agent = Agent.from_env({**PLAIN, "AGENTSTREAM_HEALTH_PORT": str(port)})
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(SettingsError, match=f"AGENTSTREAM_HEALTH_PORT is {port}.*in use"):
            async with agent:
                raise AssertionError
    assert not listening_threads()


async def test_without_the_variable_nothing_listens() -> None:
    async with Agent.from_env(PLAIN):
        assert not listening_threads()


def test_the_variable_is_read() -> None:
    assert Settings.from_env(PLAIN).health_port is None
    assert Settings.from_env({**PLAIN, "AGENTSTREAM_HEALTH_PORT": ""}).health_port is None
    assert Settings.from_env({**PLAIN, "AGENTSTREAM_HEALTH_PORT": "8099"}).health_port == 8099


@pytest.mark.parametrize("value", ["0", "65536", "-1", "tcp://10.0.0.1:80", "٨٠"])
def test_a_value_that_is_no_port_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"AGENTSTREAM_HEALTH_PORT is .* must be a port"):
        Settings.from_env({**PLAIN, "AGENTSTREAM_HEALTH_PORT": value})
