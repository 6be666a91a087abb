"""The Secrets of a sandbox's agents: where the server is, and the keys of signed streams."""

from __future__ import annotations

import itertools
import secrets
from pathlib import Path

from agentstream.protocol.signatures import Keys, SigningKey, encode_keys, entry_name


class Bindings:
    """Directories with one file per entry, as they are mounted into pods.

    Every agent has the keys of all streams, those included that are declared after its Secret was made.

    Args:
        directory: below which they are made.

    Attributes:
        keys: by the streams' names.
    """

    def __init__(self, directory: Path) -> None:
        self.keys: dict[str, Keys] = {}
        self._directory = directory
        self._numbers = itertools.count(1)
        self._made: list[Path] = []

    def sign(self, stream: str) -> None:
        """Makes a key for a stream that has none yet."""
        if stream not in self.keys:
            self.keys[stream] = (SigningKey(f"{stream}-1"[-64:], secrets.token_urlsafe(32)),)
            for binding in self._made:
                self._write_key(binding, stream)

    def make(self, url: str) -> Path:
        """Makes an agent's Secret. Returns its directory."""
        binding = self._directory / f"binding-{next(self._numbers)}"
        binding.mkdir()
        (binding / "uri").write_text(url, encoding="utf-8")
        self._made.append(binding)
        for stream in self.keys:
            self._write_key(binding, stream)
        return binding

    def _write_key(self, binding: Path, stream: str) -> None:
        (binding / entry_name(stream)).write_text(encode_keys(self.keys[stream]), encoding="utf-8")
