"""The embedded Valkey: starts on its data, comes back when it dies, says what is wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentstream.errors import AccessDenied, ConnectionLost
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.screen.output import LocalError
from agentstream_operator.local.server.embedded import EmbeddedServer, pick_port
from agentstream_operator.local.server.valkey import OPERATOR, ValkeySettings, half_of_memory, server_binary
from support.waiting import until


class Case:
    """A server in a directory of its own, and what it said."""

    def __init__(self, directory: Path) -> None:
        self.said: list[str] = []
        self.settings = ValkeySettings(
            server_binary(), directory, pick_port(None), half_of_memory(), "pass-word"
        )
        self.reaper = Reaper()
        self.lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR)
        self.server = EmbeddedServer(
            self.settings, shown=Path("DATA"), lock=self.lock, reaper=self.reaper, say=self.said.append
        )
        self.wire = self.connect(OPERATOR, "pass-word")

    def connect(self, username: str | None, password: str | None) -> Client:
        url = f"redis://127.0.0.1:{self.settings.port}"
        return Client(lambda: Endpoint(url, username, password), name="test")

    async def get(self, key: str) -> bytes | None:
        try:
            reply: bytes | None = await self.wire.call("GET", key)
        except ConnectionLost:
            return None
        return reply

    async def close(self) -> None:
        await self.wire.close()
        await self.server.stop()
        self.reaper.close()
        os.close(self.lock)


@pytest.fixture
async def case(tmp_path: Path) -> AsyncIterator[Case]:
    case = Case(tmp_path)
    yield case
    await case.close()


async def test_it_answers_to_the_operator(case: Case) -> None:
    await case.server.start()
    assert await case.wire.call("PING") == b"PONG"


async def test_nobody_is_anonymous(case: Case) -> None:
    await case.server.start()
    anonymous = case.connect(None, None)
    with pytest.raises(AccessDenied):
        await anonymous.call("PING")
    await anonymous.close()


async def test_it_listens_on_the_loopback_interface_only(case: Case) -> None:
    await case.server.start()
    assert case.server.pid is not None
    listening = {c.laddr.ip for c in psutil.Process(case.server.pid).net_connections("tcp")}
    assert listening == {"127.0.0.1"}


async def test_it_never_evicts_and_keeps_every_message(case: Case) -> None:
    await case.server.start()
    flat = await case.wire.call("CONFIG", "GET", "maxmemory*", "appendonly", "appendfsync", "save")
    config = dict(zip(flat[::2], flat[1::2], strict=True))
    assert config[b"maxmemory-policy"] == b"noeviction"
    assert int(config[b"maxmemory"]) == half_of_memory()
    assert (config[b"appendonly"], config[b"appendfsync"], config[b"save"]) == (b"yes", b"always", b"")


async def test_its_files_are_private_and_hold_no_password(case: Case, tmp_path: Path) -> None:
    await case.server.start()
    for path in (case.settings.config, case.settings.users):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "pass-word" not in path.read_text()


async def test_data_and_users_survive_a_crash(case: Case) -> None:
    await case.server.start()
    supervision = asyncio.create_task(case.server.supervise())
    await case.wire.call("SET", "k", "v")
    await case.wire.call("ACL", "SETUSER", "agent", "on", ">x", "+@connection")
    await case.wire.call("ACL", "SAVE")
    first = case.server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: case.server.pid not in {None, first} and "back" in case.said[-1])
    assert await until(lambda: case.get("k")) == b"v"
    agent = case.connect("agent", "x")
    assert await agent.call("PING") == b"PONG"
    await agent.close()
    supervision.cancel()
    assert case.said == ["valkey ended (killed by SIGKILL); restarting it", "valkey is back, with its data"]


async def test_it_comes_back_again_and_again(case: Case) -> None:
    await case.server.start()
    supervision = asyncio.create_task(case.server.supervise())
    for n in range(1, 4):
        pid = case.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda n=n: len(case.said) == 2 * n)
    supervision.cancel()
    assert case.server.pid is not None


async def test_what_ends_it_otherwise_is_said(case: Case) -> None:
    await case.server.start()
    supervision = asyncio.create_task(case.server.supervise())
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    assert case.server.pid is not None
    os.kill(case.server.pid, signal.SIGTERM)
    await until(lambda: case.server.pid is None)
    taken.bind(("127.0.0.1", case.settings.port))
    taken.listen()
    await until(lambda: any("trying again" in line for line in case.said))
    taken.close()
    await until(lambda: "back" in case.said[-1])
    supervision.cancel()
    busy = f"valkey does not start: cannot listen on port {case.settings.port}: Address already in use"
    assert any(line.startswith(busy) for line in case.said)


async def test_a_full_disk_is_said_and_with_room_again_everything_is_back(case: Case) -> None:
    await case.server.start()
    assert case.server.pid is not None
    await case.wire.call("SET", "before", "1")
    supervision = asyncio.create_task(case.server.supervise())
    # a file that may not grow is to the server what a full disk is; its successor may write again
    resource.prlimit(case.server.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with pytest.raises(ConnectionLost):
        await case.wire.call("SET", "k", "x" * 40_000)
    await until(lambda: "valkey is back, with its data" in case.said)
    assert case.said == [
        f"cannot write to DATA: {os.strerror(errno.ENOSPC)}",
        f"valkey ended (exit code 1): cannot write to DATA: {os.strerror(errno.ENOSPC)}; restarting it",
        "valkey is back, with its data",
    ]
    assert await case.wire.call("GET", "before") == b"1"
    supervision.cancel()
    await asyncio.gather(supervision, return_exceptions=True)


async def test_a_full_disk_at_the_start_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").touch()
    case = Case(tmp_path)
    with pytest.raises(LocalError, match=r"^valkey does not start: [^\n]*$"):
        await case.server.start()
    await case.close()


async def test_a_directory_that_cannot_be_written_is_one_line(case: Case, tmp_path: Path) -> None:
    case.settings.config.mkdir()
    with pytest.raises(LocalError, match=r"^cannot write to DATA: Is a directory$"):
        await case.server.start()


async def test_a_program_that_cannot_be_run_is_one_line(case: Case, tmp_path: Path) -> None:
    missing = ValkeySettings(tmp_path / "valkey", tmp_path, case.settings.port, 10**8, "x")
    server = EmbeddedServer(missing, shown=tmp_path, lock=case.lock, reaper=case.reaper, say=case.said.append)
    with pytest.raises(LocalError, match=r"^cannot start .*: No such file or directory$"):
        await server.start()


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=rf"^port {port} is in use; choose another one with --port$"):
            pick_port(port)


async def test_a_server_ends_with_the_process_that_started_it(case: Case) -> None:
    await case.server.start()
    assert case.server.pid is not None
    process = psutil.Process(case.server.pid)
    case.reaper.close()
    await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


async def test_a_cancellation_that_comes_as_it_ends_is_not_lost(case: Case) -> None:
    await case.server.start()
    process = case.server._process
    assert process is not None
    stopping = asyncio.create_task(case.server.stop())
    asked = asyncio.Future[bool]()
    ending = asyncio.create_task(process.wait())
    ending.add_done_callback(lambda _: asked.set_result(stopping.cancel()))
    await asyncio.wait({stopping, asked})
    # who had stopped it by then is not cancelled any more
    assert stopping.cancelled() == await asked
    # the end of the log was cancelled with it
    case.server._log = None
