"""The signing keys that an agent has, and the check of what it gets."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final

from agentstream.errors import SettingsError
from agentstream.protocol.entry import Entry
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import OFF, WARN, Consumes, Produces
from agentstream.protocol.signatures import SKEW, WINDOW, Keys, entry_name, key_that_signs, sign, verify

FRESH: Final = 15.0
"""Seconds for which keys that were read count as those that there are."""

_REREAD = 1.0
_REMEMBERED = 50_000


class KeyMissing(SettingsError):  # noqa: N818 - named after what is wrong
    """The stream requires signatures, and the agent has no key for it, or not yet."""


class Keyring:
    """The keys that an agent has, as they are now: a rotation reaches it without a restart.

    Args:
        read: reads the keys of a stream; raises SettingsError where that cannot be done.
        clock: seconds that only grow.
    """

    def __init__(self, read: Callable[[str], Keys], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._known: dict[str, tuple[Keys, float]] = {}

    def keys(self, stream: str) -> Keys:
        """The keys of a stream, as they were a moment ago; none where they cannot be read.

        Args:
            stream: name of the AgentStream.
        """
        return self._read_within(FRESH, stream)

    def renewed(self, stream: str) -> Keys:
        """The keys of a stream, read again unless that was done a second ago."""
        return self._read_within(_REREAD, stream)

    def _read_within(self, seconds: float, stream: str) -> Keys:
        keys, read_at = self._known.get(stream, ((), float("-inf")))
        now = self._clock()
        # what may come at any moment is looked for more often than what may change
        if now - read_at >= (seconds if keys else min(seconds, _REREAD)):
            try:
                keys = self._read(stream)
            except SettingsError:
                keys = ()
            self._known[stream] = (keys, now)
        return keys

    def signature(
        self, stream: Produces | Consumes, body: bytes, now: float | None = None, *, to: str | None = None
    ) -> tuple[str | bytes, ...]:
        """The fields that a message gets beside `m`: none where the stream is not signed.

        Where signatures are only warned of, a message whose key has not come yet goes without.

        Args:
            stream: whose keys sign.
            body: the field `m`.
            now: seconds since 1970.
            to: the key of the stream that the message is for, if that is another one.

        Raises:
            KeyMissing: the stream requires signatures, and the agent has no key.
        """
        if stream.signatures == OFF:
            return ()
        keys = self.keys(stream.stream)
        if keys:
            now = time.time() if now is None else now
            return "s", sign(key_that_signs(keys, now), to or stream.key, body, now)
        if stream.signatures == WARN:
            return ()
        raise KeyMissing(
            f"{stream.stream} takes signed messages only, and there is no key: the agent's Secret has no"
            f" readable entry `{entry_name(stream.stream)}`; mount the Secret that the operator makes, not"
            " a copy of it"
        )

    def flaw(self, stream: str, key: str, entry: Entry) -> Reason | None:
        """What is wrong with the signature of an entry; None if it is valid.

        Args:
            stream: name of the AgentStream whose keys sign.
            key: what the entry is signed for, on the server.
            entry: with a body.
        """
        flaw = verify(self.keys(stream), key, entry)
        return verify(self.renewed(stream), key, entry) if flaw is Reason.UNKNOWN_KEY else flaw


class Verifier:
    """Checks the signatures of what one group of this process gets.

    Args:
        keyring: the keys.
        stream: name of the AgentStream.
        key: its key on the server.
    """

    def __init__(self, keyring: Keyring, stream: str, key: str) -> None:
        self._keyring = keyring
        self._stream = stream
        self._key = key
        self._seen: dict[bytes, tuple[str, float]] = {}

    def flaw(self, entry: Entry) -> Reason | None:
        """What is wrong with the signature of an entry with a body; None if it is valid."""
        flaw = self._keyring.flaw(self._stream, self._key, entry)
        return Reason.REPLAYED if flaw is None and self._is_copy(entry) else flaw

    def _is_copy(self, entry: Entry) -> bool:
        """Whether the message came on another entry already: within the window a copy looks like the first.

        The bytes tell, not the signature: a sender that repeats a call signs again.
        """
        digest = hashlib.sha256(entry.body or b"").digest()[:16]
        known = self._seen.get(digest)
        if known is not None:
            return known[0] != entry.origin
        self._seen[digest] = (entry.origin, entry.added)
        while len(self._seen) > _REMEMBERED or self._oldest() < entry.added - 2 * (WINDOW + SKEW):
            del self._seen[next(iter(self._seen))]
        return False

    def _oldest(self) -> float:
        return next(iter(self._seen.values()))[1]
