"""A blocking connection, for a thread that sends one command at a time."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import hiredis

from agentstream.errors import ConnectionLost
from agentstream.protocol.commands import Argument
from agentstream.transport.endpoint import Endpoint, greeted, handshake
from agentstream.transport.error_replies import error_from_reply

_CONNECT_TIMEOUT = 5.0
_READ = 1 << 16
# A reader returns this while a reply is incomplete; None and False are replies.
_INCOMPLETE = object()


class BlockingConnection:
    """Sends commands for one thread; another one may interrupt it. Call `greet` first.

    Args:
        endpoint: the server and the credentials.
        name: the connection's name on the server.
        timeout: seconds without a reply after which it counts as broken.

    Raises:
        SettingsError: the endpoint is no address of a server.
        ConnectionLost: the server cannot be reached.
    """

    def __init__(self, endpoint: Endpoint, name: str, timeout: float) -> None:
        self._address = endpoint.address
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._handshake = handshake(endpoint, name, 2)
        try:
            self._socket = _connect(endpoint, min(timeout, _CONNECT_TIMEOUT))
        except (OSError, UnicodeError) as error:
            raise ConnectionLost(f"{self._address}: {error}") from error
        self._socket.settimeout(timeout)

    def greet(self) -> None:
        """Authenticates.

        Raises:
            AgentStreamError: the server refuses, or does not answer. The connection is closed then.
        """
        try:
            greeted(self._handshake, self._ask(self._handshake), self._address)
        except BaseException:
            self.close()
            raise

    def call(self, *args: Argument) -> Any:
        """Sends one command and returns its reply.

        Raises:
            ConnectionLost: no reply; whether the command was carried out is unknown. It is closed then.
            AgentStreamError: an error reply; see `error_from_reply`.
        """
        try:
            (reply,) = self._ask([args])
        except ConnectionLost:
            self.close()
            raise
        if isinstance(reply, hiredis.ReplyError):
            raise error_from_reply(str(reply), self._address)
        return reply

    def interrupt(self) -> None:
        """Makes a call that waits in another thread fail at once."""
        try:
            # of the plain socket: that of a TLS socket would end the encryption under a call
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            # it is closed already
            return

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def _ask(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        packed = b"".join(hiredis.pack_command(tuple(args)) for args in commands)  # type: ignore[arg-type]
        replies: list[Any] = []
        try:
            self._socket.sendall(packed)
            while len(replies) < len(commands):
                data = self._socket.recv(_READ)
                if not data:
                    raise ConnectionLost(f"{self._address}: the server closed the connection")
                self._reader.feed(data)
                while (reply := self._reader.gets()) is not _INCOMPLETE:
                    replies.append(reply)
        except (OSError, ValueError, hiredis.HiredisError) as error:
            raise ConnectionLost(f"{self._address}: {error or 'no reply'}") from error
        return replies


def _connect(endpoint: Endpoint, timeout: float) -> socket.socket:
    target, context = endpoint.target(), endpoint.tls()
    if target.path:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout)
            connected.connect(target.path)
        except BaseException:
            connected.close()
            raise
        return connected
    connected = socket.create_connection((target.host, target.port), timeout)
    try:
        # each command is one write, so it need not wait for more
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(connected, server_hostname=target.host) if context else connected
    except BaseException:
        connected.close()
        raise
