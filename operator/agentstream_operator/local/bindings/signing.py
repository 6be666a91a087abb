"""The keys of signed streams as files, each in a directory that its owner alone may read."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agentstream.protocol.signatures import SigningKey
from agentstream_operator.cluster.port import SigningKeys
from agentstream_operator.local.bindings.files import write_private
from agentstream_operator.resources.meta import ResourceKey


class _File(msgspec.Struct, frozen=True):
    """What a file says."""

    owner: str
    keys: tuple[SigningKey, ...]


class SigningFiles:
    """The keys of all streams. They stay with the messages when a stream is no longer declared.

    Args:
        root: the directory that holds them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, stream: ResourceKey) -> SigningKeys | None:
        """The keys of a stream; None if there are none, or something else in their place."""
        try:
            found = msgspec.json.decode(self._path(stream).read_bytes(), type=_File)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return SigningKeys(stream, found.keys, found.owner)

    def write(self, keys: SigningKeys) -> None:
        """Writes the keys of a stream in one step."""
        text = msgspec.json.encode(_File(keys.owner, keys.keys)).decode()
        write_private(self._path(keys.stream), text)

    def _path(self, stream: ResourceKey) -> Path:
        return self._root / f"{stream.namespace}.{stream.name}"
