"""Addresses and credentials of servers, and the handshake on a new connection."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from agentstream.errors import AgentStreamError, SettingsError
from agentstream.transport.error_replies import error_from_reply, refuses_connections

_PORT = 6379
_TCP, _UNIX = ("redis", "rediss"), "unix"
_VERSION = "0.1.0"
_FORMS = "write redis://host:port, rediss://host:port with TLS, or unix:///path"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an endpoint's URL, with its credentials.

    Attributes:
        host: name or address of the server's host; empty for a socket of the file system.
        port: the server's port.
        path: the socket in the file system; empty otherwise.
        tls: whether the connection is encrypted.
        db: number of the database.
        username: the ACL user; None for the server's default user.
        password: its password.
    """

    host: str = ""
    port: int = _PORT
    path: str = ""
    tls: bool = False
    db: int = 0
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        """The address without secrets."""
        return f"Target({self.path or f'{self.host}:{self.port}'})"


class Endpoint(msgspec.Struct, frozen=True):
    """Address of a server, and credentials.

    Attributes:
        url: `redis://host:port/db`, `rediss://…` with TLS, or `unix:///path?db=`, each with `user:password@`
            if need be; special characters are percent-encoded.
        username: the ACL user, if not in the URL.
        password: its password, if not in the URL.
        ca_file: file with the CA certificate of a TLS server.
    """

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None

    def __repr__(self) -> str:
        """The address without secrets."""
        return f"Endpoint({self.address})"

    @property
    def address(self) -> str:
        """The URL without credentials, for logs and errors."""
        before, _, where = self.url.rpartition("@")
        scheme, where = before.partition("://")[0], where.partition("?")[0]
        if "?" in before or "#" in before:
            # the last @ may be one in an option, and what follows it a part of a password
            where = "…"
        # another scheme may be a part of the credentials
        return f"{scheme}://{where}" if scheme in (*_TCP, _UNIX) else where

    def target(self) -> Target:
        """Parses the URL.

        Raises:
            SettingsError: the URL is no address of a server.
        """
        try:
            parts = urlsplit(self.url)
            port = parts.port
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        except ValueError:
            # the message may quote a part of the password
            raise self._mistake(
                "it cannot be parsed; percent-encode special characters in the password"
            ) from None
        if parts.scheme not in (*_TCP, _UNIX):
            raise self._mistake(_FORMS)
        if parts.fragment or options.keys() - {"db"}:
            raise self._mistake("the only option is db=, and `#` must be percent-encoded")
        username = unquote(parts.username or "") if self.username is None else self.username
        password = parts.password and unquote(parts.password) if self.password is None else self.password
        database = options.get("db", "" if parts.scheme == _UNIX else parts.path.removeprefix("/"))
        if database and not (database.isascii() and database.isdigit()):
            raise self._mistake("the database must be a number")
        is_unix = parts.scheme == _UNIX and parts.path and not parts.hostname
        if not is_unix and (parts.scheme not in _TCP or not parts.hostname or port == 0):
            raise self._mistake(_FORMS)
        return Target(
            host=self._host(unquote(parts.hostname or "")),
            port=port or _PORT,
            path=unquote(parts.path) if is_unix else "",
            tls=parts.scheme == "rediss",
            db=int(database or 0),
            username=username or None,
            password=password or None,
        )

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, which checks the server's certificate and name; None without TLS.

        Raises:
            SettingsError: the URL is no address of a server.
            OSError: the CA certificate cannot be read.
        """
        return ssl.create_default_context(cafile=self.ca_file) if self.target().tls else None

    def _host(self, host: str) -> str:
        try:
            host.encode("idna")
        except UnicodeError:
            raise self._mistake("the host is not a valid name") from None
        return host

    def _mistake(self, what: str) -> SettingsError:
        return SettingsError(f"{self.address} is no address of a server: {what}")


def handshake(endpoint: Endpoint, name: str, protocol: int) -> list[tuple[str, ...]]:
    """The first commands on a new connection; `greeted` checks the replies.

    Args:
        endpoint: the server and the credentials.
        name: the connection's name on the server.
        protocol: version of RESP, 2 or 3.

    Raises:
        SettingsError: the endpoint's URL is no address of a server.
    """
    target = endpoint.target()
    commands: list[tuple[str, ...]] = []
    credentials: tuple[str, ...] = ()
    if target.username is not None or target.password is not None:
        credentials = (target.username or "default", target.password or "")
    if protocol == 3:  # noqa: PLR2004 - the protocol's version
        commands.append(("HELLO", "3", *(("AUTH", *credentials) if credentials else ())))
    elif credentials:
        commands.append(("AUTH", *credentials))
    commands += [
        ("CLIENT", "SETNAME", name),
        ("CLIENT", "SETINFO", "LIB-NAME", "agentstream"),
        ("CLIENT", "SETINFO", "LIB-VER", _VERSION),
    ]
    if target.db:
        commands.append(("SELECT", str(target.db)))
    return commands


def greeted(commands: Iterable[tuple[str, ...]], replies: Iterable[object], address: str) -> None:
    """Checks the replies to `handshake`, among which errors are exceptions.

    Refused names of the connection and the library are ignored: older servers do not know them all.

    Raises:
        AgentStreamError: the error among the replies, as of `error_from_reply`.
    """
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, AgentStreamError):
            raise reply
        if isinstance(reply, Exception) and (command[0] != "CLIENT" or refuses_connections(str(reply))):
            raise error_from_reply(str(reply), address)
