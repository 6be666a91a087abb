"""The data directory of `agentstream dev` and its exclusive lock.

lock             locked by `agentstream dev` and by the server that it started
operator         the operator's password on the server
resources.json   identity and age of the resources, see `metadata.py`
server.conf      the server's configuration, written at every start
users.acl        the server's users, with hashed passwords
appendonlydir/   the messages
bindings/        one directory per agent: address and credentials
signing/         one file per signed stream: its keys
console          the address of the HTTP API and a token for it, while it is served
replays/         one file per replay: its manifest and how far it has come
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from agentstream_operator.local.bindings import make_private, write_private
from agentstream_operator.local.screen.output import LocalError, cannot
from agentstream_operator.local.server.valkey import OPERATOR

_TAKEOVER = 8.0
"""Seconds that the server of a killed `agentstream dev` gets to end."""


class DataDirectory:
    """Creates and locks a data directory; a context manager.

    Errors name the directory as the user did (`shown`). A process that inherits the descriptor `lock` shares
    the lock.

    Raises:
        LocalError: on entering: the directory cannot be created, written or locked, or is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.shown = path
        self.bindings, self.signing = self.path / "bindings", self.path / "signing"
        self.resources, self.replays = self.path / "resources.json", self.path / "replays"
        self.console = self.path / "console"
        self.lock = -1

    def password(self) -> str:
        """Reads the operator's password; generated at the first run."""
        path = self.path / "operator"
        try:
            if not path.exists():
                write_private(path, secrets.token_urlsafe(32))
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise cannot(f"write to {self.shown}", error) from error

    def __enter__(self) -> Self:
        try:
            make_private(self.path)
            make_private(self.bindings)
            make_private(self.signing)
            make_private(self.replays)
            self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            self._acquire()
            # it contains passwords, and is often inside a Git repository
            if not (self.path / ".gitignore").exists():
                write_private(self.path / ".gitignore", "*\n")
        except OSError as error:
            self._release()
            raise cannot(f"use {self.shown} as data directory", error) from error
        except LocalError:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _acquire(self) -> None:
        until = time.monotonic() + _TAKEOVER
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self.lock, 20, 0).decode().strip()
                if _runs(holder) or time.monotonic() > until:
                    raise LocalError(
                        f"{self.shown} is in use by another `agentstream dev` (process {holder});"
                        " stop that one, or choose another directory with --data"
                    ) from None
                # its owner was killed; the server that shares the lock is about to end
                time.sleep(0.05)
            else:
                os.truncate(self.lock, 0)
                os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)
                return

    def _release(self) -> None:
        if self.lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self.lock)
            self.lock = -1


def running_url(data: Path) -> str:
    """Returns the address of the server that keeps its data in a directory, with the operator's password.

    Raises:
        OSError, LookupError: there is none, or the directory is another user's.
    """
    password = (data / "operator").read_text(encoding="utf-8")
    port = (data / "server.conf").read_text(encoding="utf-8").split("\nport ")[1].split()[0]
    return f"redis://{OPERATOR}:{password}@127.0.0.1:{port}"


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
