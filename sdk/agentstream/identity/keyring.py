"""The agent's signing keys, and the verification of received messages."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final

from agentstream.errors import KeyMissing, SettingsError
from agentstream.protocol.entry import Entry
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import OFF, WARN, Consumes, Produces
from agentstream.protocol.signatures import SKEW, WINDOW, Keys, entry_name, key_that_signs, sign, verify

FRESH: Final = 15.0
"""Seconds after which keys are read again."""

_REREAD = 1.0
_REMEMBERED = 50_000


class Keyring:
    """The agent's signing keys, read again from time to time: a rotation needs no restart.

    Args:
        read: reads the keys of a stream, or raises SettingsError.
        clock: monotonic seconds.
    """

    def __init__(self, read: Callable[[str], Keys], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._known: dict[str, tuple[Keys, float]] = {}

    def keys(self, stream: str) -> Keys:
        """The keys of a stream, at most `FRESH` seconds old; none if they cannot be read.

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
        # a missing key may arrive at any moment, so it is looked for more often
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
        """Signs a message: the field `s` and its value; nothing if the stream is not signed.

        On a stream that only warns, messages are sent unsigned until the agent has a key.

        Args:
            stream: the stream whose keys sign.
            body: the field `m`.
            now: seconds since 1970.
            to: the key of the stream that the message is added to, if it is another one.

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
        """Verifies the signature of an entry. Returns the reason if it is not valid, else None.

        Args:
            stream: name of the AgentStream whose keys sign.
            key: the key on the server that the entry is signed for.
            entry: with a body.
        """
        flaw = verify(self.keys(stream), key, entry)
        return verify(self.renewed(stream), key, entry) if flaw is Reason.UNKNOWN_KEY else flaw


class Verifier:
    """Verifies the signatures of messages that a group of this process receives.

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
        """Verifies an entry with a body. Returns the reason if its signature is not valid, else None."""
        flaw = self._keyring.flaw(self._stream, self._key, entry)
        return Reason.REPLAYED if flaw is None and self._is_copy(entry) else flaw

    def _is_copy(self, entry: Entry) -> bool:
        """Whether the same message came on another entry before: its signature is valid there, too.

        Bodies are compared, not signatures: a sender that repeats a call signs again.
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
