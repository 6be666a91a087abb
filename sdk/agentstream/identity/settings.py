"""The agent's settings, from the environment and the mounted Secret.

The Secret follows the Service Binding convention: a directory with one file per entry. It is read again at
every connect, so that new credentials need no restart.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agentstream.errors import SettingsError
from agentstream.protocol.keys import DNS_LABEL
from agentstream.protocol.signatures import ENTRIES, SigningEntry, decode_signing, entry_name
from agentstream.transport.endpoint import Endpoint

_LAST_PORT = 65535


class Binding(msgspec.Struct, frozen=True):
    """The agent's mounted Secret: a directory with one file per entry.

    Attributes:
        directory: the mount path.
    """

    directory: Path

    def entry(self, name: str) -> str | None:
        """The content of one file without surrounding white space; None if there is no such file.

        Raises:
            SettingsError: the file cannot be read.
        """
        path = self.directory / name
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read {path}: {error}") from error

    def has_entries(self, prefix: str) -> bool:
        """Whether there is an entry whose name begins so."""
        return next(self.directory.glob(f"{prefix}*"), None) is not None

    def endpoint(self) -> Endpoint:
        """Reads the server's address and the credentials.

        Raises:
            SettingsError: an entry is missing or cannot be read.
        """
        uri, host, port = self.entry("uri"), self.entry("host"), self.entry("port")
        authority = self.directory / "ca.crt"
        has_authority = authority.exists()
        if not uri:
            if not host:
                raise SettingsError(f"{self.directory} has neither an entry `uri` nor `host`")
            uri = f"{'rediss' if has_authority else 'redis'}://{host}:{port or 6379}"
        return Endpoint(
            uri,
            self.entry("username"),
            self.entry("password"),
            ca_file=str(authority) if has_authority else None,
        )


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Name of the agent, and address of its server.

    Attributes:
        namespace: the namespace of the agent's resources.
        agent: the agent's name in it.
        source: the mounted Secret, or the server's address and credentials themselves.
        installation: the operator's installation, if not the default one.
        pod: names the agent's consumers: a process recovers what processes of its pod left unsettled that
            have ended.
        health_port: the port for probes; None for no probes.
        signing: policies and keys of streams, by the streams' names, in place of those in the mounted Secret.
    """

    namespace: str
    agent: str
    source: Binding | Endpoint
    pod: str
    installation: str = "agentstream"
    health_port: int | None = None
    signing: Mapping[str, SigningEntry] = msgspec.field(default_factory=dict)

    def endpoint(self) -> Endpoint:
        """The server's address and the credentials, as of now.

        Raises:
            SettingsError: the mounted Secret is incomplete.
        """
        return self.source.endpoint() if isinstance(self.source, Binding) else self.source

    def signing_of(self, stream: str) -> SigningEntry | None:
        """Policy and keys of a stream, as of now; None if the Secret says nothing of it, but of others.

        Raises:
            SettingsError: the entry of the mounted Secret cannot be read.
        """
        if stream in self.signing or not isinstance(self.source, Binding):
            found = self.signing.get(stream)
            return SigningEntry() if found is None and not self.signing else found
        text = self.source.entry(entry_name(stream))
        if text is not None:
            return decode_signing(text)
        return None if self.source.has_entries(ENTRIES) else SigningEntry()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Reads the environment.

        `AGENTSTREAM_BINDING` names the directory with the agent's Secret; without it, `agentstream` in
        `SERVICE_BINDING_ROOT` is that directory; without this, `AGENTSTREAM_URL`, `AGENTSTREAM_USERNAME` and
        `AGENTSTREAM_PASSWORD` say where the server is. `AGENTSTREAM_NAMESPACE`, `AGENTSTREAM_AGENT` and
        `AGENTSTREAM_INSTALLATION` come before the entries of the Secret. `AGENTSTREAM_POD` names the pod;
        without it the host's name does. `AGENTSTREAM_HEALTH_PORT` has the agent answer probes on that port.

        Raises:
            SettingsError: something is missing or wrong; the message says what.
        """
        variables = os.environ if environ is None else environ
        source = _source(variables)
        settings = cls(
            namespace=_name(variables, source, "namespace"),
            agent=_name(variables, source, "agent"),
            source=source,
            pod=variables.get("AGENTSTREAM_POD") or socket.gethostname(),
            installation=_named(variables, source, "installation") or "agentstream",
            health_port=_port(variables, "AGENTSTREAM_HEALTH_PORT"),
        )
        settings.endpoint().target()
        return settings


def _source(variables: Mapping[str, str]) -> Binding | Endpoint:
    """The Secret or the address that the environment names."""
    if binding := variables.get("AGENTSTREAM_BINDING"):
        if not Path(binding).is_dir():
            raise SettingsError(f"AGENTSTREAM_BINDING names {binding}, which is no directory")
        return Binding(Path(binding))
    root = variables.get("SERVICE_BINDING_ROOT")
    if root and (Path(root) / "agentstream").is_dir():
        return Binding(Path(root) / "agentstream")
    if url := variables.get("AGENTSTREAM_URL"):
        return Endpoint(
            url, variables.get("AGENTSTREAM_USERNAME") or None, variables.get("AGENTSTREAM_PASSWORD") or None
        )
    looked = f"; {root} has no directory `agentstream`" if root else ""
    raise SettingsError(
        "the environment does not say where the server is: set AGENTSTREAM_BINDING to the directory of the "
        f"agent's Secret, or AGENTSTREAM_URL{looked}"
    )


def _named(variables: Mapping[str, str], source: Binding | Endpoint, entry: str) -> str | None:
    value = variables.get(f"AGENTSTREAM_{entry.upper()}")
    if not value and isinstance(source, Binding):
        value = source.entry(entry)
    return value or None


def _name(variables: Mapping[str, str], source: Binding | Endpoint, entry: str) -> str:
    value = _named(variables, source, entry)
    variable = f"AGENTSTREAM_{entry.upper()}"
    if value is None:
        also = f", and {source.directory} has no entry `{entry}`" if isinstance(source, Binding) else ""
        raise SettingsError(f"the agent's {entry} is not known: {variable} is not set{also}")
    if not re.fullmatch(DNS_LABEL, value):
        raise SettingsError(f"the agent's {entry} is {value!r}: {variable} must be a DNS label")
    return value


def _port(variables: Mapping[str, str], variable: str) -> int | None:
    value = variables.get(variable)
    if not value:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= _LAST_PORT:
        raise SettingsError(f"{variable} is {value!r}: it must be a port, a number from 1 to {_LAST_PORT}")
    return int(value)
