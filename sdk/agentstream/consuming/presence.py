"""Presence: whether the process behind the name of a consumer lives, asked of the kernel and not the server.

A consumer binds a socket, named after itself, in the abstract namespace of Unix sockets. The kernel keeps one
for each network namespace, which is that of a pod or of a machine, and frees the name as the process ends,
however it ends. So in one namespace a name that is free proves a death at once, and one that is taken a life.
Elsewhere nothing is known, and leases decide. See https://man7.org/linux/man-pages/man7/unix.7.html.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import socket
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

from agentstream.protocol.keys import ConsumerProcess, consumer_name, parse_consumer, parse_process

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/net")
_log = logging.getLogger("agentstream")


def this_place() -> str | None:
    """Returns a name of this network namespace, on this machine until it boots again; None if it has none.

    The number of a namespace may be given again once it is gone, and with it every process that was in it.
    """
    try:
        boot, namespace = _BOOT.read_text().strip(), _NAMESPACE.stat()
    except OSError:
        return None
    where = f"{boot} {namespace.st_dev} {namespace.st_ino}"
    return hashlib.blake2b(where.encode(), digest_size=5).hexdigest()


class Presence:
    """The name of a consumer of this process, and the socket that shows that the process lives.

    Both are made when the name is first asked for: in the process that consumes, which may have been forked
    off by the one that made the agent.
    """

    def __init__(self, pod: str, place: Callable[[], str | None] = this_place) -> None:
        self._pod = pod
        self._find_place = place
        self._place: str | None = None
        self._process: ConsumerProcess | None = None
        self._socket: socket.socket | None = None
        self._has_warned = False

    @property
    def name(self) -> str:
        """The name of the consumer: no other one ever has it."""
        if self._process is None:
            self._process = self._appear()
        return consumer_name(self._pod, self._process)

    def has_ended(self, consumer: str) -> bool | None:
        """Returns whether the process of a consumer has ended; None if that cannot be known here."""
        process = parse_process(consumer)
        if process is None or self._socket is None or process.place != self._place:
            return None
        with _unbound() as probe:
            try:
                # nothing is sent, and nothing that another process that asks could mistake for a life is made
                probe.connect(_address(process))
            except ConnectionRefusedError:
                return True
            except OSError:
                return None
            return False

    def predecessors(self, consumers: Iterable[str]) -> list[str]:
        """Returns the consumers of this pod whose processes have ended; warns of the first that lives."""
        ended = []
        for consumer in consumers:
            if consumer == self.name or parse_consumer(consumer)[0] != self._pod:
                continue
            has_ended = self.has_ended(consumer)
            if has_ended:
                ended.append(consumer)
            elif has_ended is False:
                self._warn_of(parse_process(consumer))
        return ended

    def close(self) -> None:
        """Shows that this consumer is no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _appear(self) -> ConsumerProcess:
        """Binds a name that no process has, nor had: where there is no place, a random one."""
        self._place, started, process_id = self._find_place(), time.time_ns() // 1_000_000, os.getpid()
        if self._place is not None:
            bound = _unbound()
            try:
                while not _binds(bound, process := ConsumerProcess(started, process_id, self._place)):
                    started += 1
            except OSError:
                # sockets of this kind are forbidden here
                bound.close()
            else:
                self._socket = bound
                _bound.add(self)
                return process
        return ConsumerProcess(started, process_id, secrets.token_hex(5))

    def _warn_of(self, process: ConsumerProcess | None) -> None:
        if process is None or process.id == os.getpid() or self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "another process (%d) consumes under the name of this pod, %s: both go on, each with messages of "
            "its own; where they are no workers of one program, set AGENTSTREAM_POD to a name for each",
            process.id,
            self._pod,
        )


_bound: weakref.WeakSet[Presence] = weakref.WeakSet()


def _forget_parent() -> None:
    """Closes the sockets that a forked process has from its parent: they would outlive the parent here."""
    for presence in tuple(_bound):
        presence.close()


# other platforms have neither forks nor places
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def _unbound() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _address(process: ConsumerProcess) -> str:
    return f"\0agentstream:{process}"


def _binds(unbound: socket.socket, process: ConsumerProcess) -> bool:
    """Binds a process's name if it is free. Returns whether it was."""
    try:
        unbound.bind(_address(process))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
