"""What an embedded Valkey is told and what it says: configuration, users, and its log in plain words."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

OPERATOR = "agentstream-operator"
"""The only user that may do everything."""

READY = "Ready to accept connections"
"""What the log says when the server takes commands."""


@dataclass(frozen=True, slots=True)
class ValkeySettings:
    """What is decided about the server.

    Attributes:
        binary: the program.
        directory: where its data is.
        port: on the loopback interface.
        memory: bytes that its data may take.
        password: of the user `OPERATOR`.
    """

    binary: Path
    directory: Path
    port: int
    memory: int
    password: str = field(repr=False)

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "server.conf"

    @property
    def users(self) -> Path:
        """The file of users."""
        return self.directory / "users.acl"


def config_text(settings: ValkeySettings) -> str:
    """The configuration file: loopback only, every message on disk, nothing ever evicted."""
    return "".join(
        f"{line}\n"
        for line in (
            "bind 127.0.0.1",
            f"port {settings.port}",
            f"dir {_quoted(settings.directory)}",
            f"aclfile {_quoted(settings.users)}",
            'logfile ""',
            'save ""',
            "appendonly yes",
            # with less, a server that is killed while the disk is slow takes answered writes along
            "appendfsync always",
            f"maxmemory {settings.memory}",
            "maxmemory-policy noeviction",
            # entries of 1 KiB and more take a seventh less memory in larger nodes
            "stream-node-max-bytes 65536",
            "stream-node-max-entries 1000",
        )
    )


def users_text(password: str) -> str:
    """The file of users as it is at the start: nobody is anonymous, and the operator adds the agents."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"user default off resetpass -@all\nuser {OPERATOR} on #{digest} ~* &* +@all\n"


_LIMIT = Path("/sys/fs/cgroup/memory.max")


def half_of_memory() -> int:
    """Half of the memory that this machine, or the control group around this process, has; in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(_LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        limit = total
    return min(total, limit) // 2


# pid, role, day, time, level; then what matters
_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d{4} [\d:.]+ (?P<level>[.\-*#]) (?P<text>.*)$")
_WRITING = re.compile(
    r"(?:rror writing to the AOF file|Can't open or create append-only dir [^:]*"
    r"|Can't open the append-only file [^:]*"
    r"|Write error writing append only file on disk|Fail to fsync the AOF file): (?P<why>.+?)\.?$"
)
_SHORT = "Short write while writing to the AOF file"
_BIND = re.compile(r"(?:bind|listen): (?P<why>.+)$")


def in_words(line: str, directory: Path, port: int) -> str | None:
    """What a line of the log means to the person who runs `agentstream dev`; None if nothing.

    Args:
        line: as the server printed it.
        directory: the data directory as the person named it.
        port: the server's port.
    """
    found = _PREFIX.match(line)
    text = found["text"] if found else line
    if _SHORT in text:
        return f"cannot write to {directory}: {os.strerror(errno.ENOSPC)}"
    if writing := _WRITING.search(text):
        return f"cannot write to {directory}: {writing['why']}"
    if binding := _BIND.search(text):
        return f"cannot listen on port {port}: {binding['why']}"
    return None


def gist(lines: list[str], directory: Path, port: int) -> str:
    """Why a server ended, from the last lines of its log."""
    for line in reversed(lines):
        if meaning := in_words(line, directory, port):
            return meaning
    warnings = [found["text"] for line in lines if (found := _PREFIX.match(line)) and found["level"] == "#"]
    return (warnings or lines or ["it said nothing"])[-1].strip()


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
