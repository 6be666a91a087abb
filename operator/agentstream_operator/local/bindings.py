"""Bindings and signing keys as private files: local mode's counterpart of the operator's Secrets."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agentstream.protocol.keys import user_name
from agentstream.protocol.signatures import SigningKey, entry_name
from agentstream_operator.cluster.port import Credentials, SigningKeys
from agentstream_operator.cluster.secret_contents import ServerAddress, binding_entries
from agentstream_operator.resources.meta import ResourceKey

_SIGNING = entry_name("")


def write_private(path: Path, text: str) -> None:
    """Replaces a file atomically; mode 0600.

    Raises:
        OSError: the file cannot be written; its former content is kept.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def make_private(directory: Path) -> None:
    """Creates a directory of mode 0700, with its parents, unless it exists.

    Raises:
        OSError: the directory cannot be created, or the path is a file.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)


class BindingFiles:
    """One directory per agent, laid out as a Service Binding for Kubernetes.

    The server has the port on the loopback interface. The SDK reads the directory at every connect,
    so running agents see changes. Passwords are only here, not in arguments or environments.
    """

    def __init__(self, root: Path, *, port: int, installation: str) -> None:
        self._root = root
        self._installation = installation
        self._server = ServerAddress(f"redis://127.0.0.1:{port}", "127.0.0.1", port)

    @staticmethod
    def complete(directory: Path) -> bool:
        """Tells whether a binding has been written."""
        return (directory / "password").exists()

    def directory(self, namespace: str, agent: str) -> Path:
        """Returns the directory of an agent's binding, whether or not it exists."""
        return self._root / f"{namespace}.{agent}"

    def users(self) -> set[str]:
        """Returns the names of the users who have a binding."""
        agents = (directory.name.split(".", 1) for directory in self._root.iterdir())
        return {user_name(self._installation, *agent) for agent in agents}

    def read(self, namespace: str, agent: str) -> Credentials | None:
        """Reads the agent's credentials; None if there is no binding."""
        directory = self.directory(namespace, agent)
        try:
            username = (directory / "username").read_text(encoding="utf-8")
            password = (directory / "password").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        signing = {
            path.name.removeprefix(_SIGNING): path.read_text(encoding="utf-8")
            for path in directory.glob(f"{_SIGNING}*")
        }
        return Credentials(namespace, agent, username, password, signing=signing)

    def write(self, credentials: Credentials) -> None:
        """Writes an agent's binding, each entry atomically."""
        directory = self.directory(credentials.namespace, credentials.agent)
        make_private(directory)
        entries = binding_entries(credentials, self._server, self._installation)
        # the password is the last one: its presence makes the binding complete
        for name, value in entries.items():
            write_private(directory / name, value)
        for path in directory.glob(f"{_SIGNING}*"):
            if path.name not in entries:
                path.unlink()

    def delete(self, namespace: str, agent: str) -> None:
        """Deletes an agent's binding, if there is one."""
        shutil.rmtree(self.directory(namespace, agent), ignore_errors=True)

    def relocate(self) -> None:
        """Writes the server's address into every binding: an earlier run may have used another port."""
        for directory in self._root.iterdir():
            write_private(directory / "uri", self._server.uri)
            write_private(directory / "port", str(self._server.port))


class _StoredKeys(msgspec.Struct, frozen=True):
    owner: str
    keys: tuple[SigningKey, ...]


@dataclass(frozen=True, slots=True)
class SigningFiles:
    """One file per signed stream. It stays with the messages when the stream is no longer declared."""

    root: Path

    def read(self, stream: ResourceKey) -> SigningKeys | None:
        """Reads the keys of a stream; None if the file is missing or invalid."""
        try:
            stored = msgspec.json.decode(self._path(stream).read_bytes(), type=_StoredKeys)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return SigningKeys(stream, stored.keys, stored.owner)

    def write(self, keys: SigningKeys) -> None:
        """Writes the keys of a stream atomically."""
        text = msgspec.json.encode(_StoredKeys(keys.owner, keys.keys)).decode()
        write_private(self._path(keys.stream), text)

    def _path(self, stream: ResourceKey) -> Path:
        return self.root / f"{stream.namespace}.{stream.name}"
