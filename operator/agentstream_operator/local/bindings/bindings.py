"""How agents reach the server: one directory per agent, laid out as a Service Binding for Kubernetes is.

The SDK reads the directory at every connect, so what is written here reaches running agents. Passwords are
nowhere else: neither in arguments nor in environments.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from agentstream.protocol.keys import user_name
from agentstream.protocol.signatures import entry_name
from agentstream_operator.cluster.port import Credentials
from agentstream_operator.local.bindings.files import make_private, write_private

_SIGNING = entry_name("")


class BindingFiles:
    """The bindings of all agents.

    Args:
        root: the directory that holds them.
        port: of the server on the loopback interface.
        installation: name of the installation.
    """

    def __init__(self, root: Path, *, port: int, installation: str) -> None:
        self._root = root
        self._installation = installation
        self._server = {"uri": f"redis://127.0.0.1:{port}", "host": "127.0.0.1", "port": str(port)}

    @staticmethod
    def complete(directory: Path) -> bool:
        """Whether a binding is there."""
        return (directory / "password").exists()

    def directory(self, namespace: str, agent: str) -> Path:
        """The agent's binding, whether it is there or not."""
        return self._root / f"{namespace}.{agent}"

    def users(self) -> set[str]:
        """Names of the users for whom there is a binding."""
        places = (directory.name.split(".", 1) for directory in self._root.iterdir())
        return {user_name(self._installation, *place) for place in places}

    def read(self, namespace: str, agent: str) -> Credentials | None:
        """The agent's credentials, if there are any."""
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
        """Writes an agent's binding, each entry in one step."""
        directory = self.directory(credentials.namespace, credentials.agent)
        make_private(directory)
        entries = {
            "type": "redis",
            "provider": "agentstream",
            **self._server,
            "namespace": credentials.namespace,
            "agent": credentials.agent,
            "installation": self._installation,
            **{entry_name(stream): keys for stream, keys in credentials.signing.items()},
            "username": credentials.username,
            # the last one: who waits for the binding waits for the password
            "password": credentials.password,
        }
        for name, value in entries.items():
            write_private(directory / name, value)
        for path in directory.glob(f"{_SIGNING}*"):
            if path.name not in entries:
                path.unlink()

    def delete(self, namespace: str, agent: str) -> None:
        """Removes an agent's binding, if there is one."""
        shutil.rmtree(self.directory(namespace, agent), ignore_errors=True)

    def relocate(self) -> None:
        """Writes into every binding where the server is now: another run may have had another port."""
        for directory in self._root.iterdir():
            for name, value in self._server.items():
                write_private(directory / name, value)
