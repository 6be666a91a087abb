"""The agent's signing keys and policies, and the verification of received messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from agentstream.errors import AgentStreamError, KeyMissing, SettingsError
from agentstream.protocol.entry import Entry
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import OFF, REQUIRE, Consumes, Produces, stronger
from agentstream.protocol.signatures import (
    Keys,
    SigningEntry,
    entry_name,
    key_that_signs,
    sign,
    verify,
)

FRESH: Final = 15.0
"""Seconds after which the Secret is read again."""

_REREAD = 1.0
_REMEMBERED = 50_000
_UNSIGNED = SigningEntry()


class Keyring:
    """What the agent's Secret says of signatures, read again from time to time: a change needs no restart.

    Args:
        read: reads what it says of a stream; see `Settings.signing_of`.
        clock: monotonic seconds.
    """

    def __init__(
        self, read: Callable[[str], SigningEntry | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._known: dict[str, tuple[SigningEntry | None, float]] = {}

    def keys(self, stream: str) -> Keys:
        """The keys of a stream, at most `FRESH` seconds old; none if they cannot be read.

        Args:
            stream: name of the AgentStream.
        """
        signing = self._signing(stream, FRESH)
        # a missing key may arrive at any moment
        return signing.keys if signing is not None and signing.keys else self.renewed(stream)

    def renewed(self, stream: str) -> Keys:
        """The keys of a stream, read again unless that was done a second ago."""
        signing = self._signing(stream, _REREAD)
        return () if signing is None else signing.keys

    def check_named(self, stream: Consumes) -> None:
        """Checks that the Secret names a stream, or none at all.

        What it does not name beside others is on its way to it, or was made up by who wrote the route: such a
        stream would be a way around the policy of the others.

        Raises:
            AgentStreamError: it does not.
        """
        if self._signing(stream.stream, _REREAD) is None:
            raise AgentStreamError(
                f"{stream.stream} is not consumed before the agent's Secret has the entry"
                f" `{entry_name(stream.stream)}`, as it has for other streams: wait until it is mounted, or"
                " name the stream in Settings.signing"
            )

    def policy(self, stream: Produces | Consumes) -> str:
        """The policy of a stream: the stronger one of the Secret's and the route's."""
        signing = self._signing(stream.stream, FRESH)
        return stronger(stream.signatures, OFF if signing is None else signing.policy)

    def enforced(self, stream: Consumes) -> Consumes:
        """What a route says of a group, with the policy that holds."""
        policy = self.policy(stream)
        return stream if policy == stream.signatures else msgspec.structs.replace(stream, signatures=policy)

    def signs(self, stream: Produces) -> bool:
        """Whether messages to a stream are signed, or may not be sent."""
        signing = self._signing(stream.stream, FRESH)
        return stream.signatures != OFF or (signing is not None and signing != _UNSIGNED)

    def _signing(self, stream: str, within: float) -> SigningEntry | None:
        known, read_at = self._known.get(stream, (None, float("-inf")))
        now = self._clock()
        if now - read_at < within:
            return known
        try:
            known = self._read(stream)
        except SettingsError:
            # what cannot be read must not open what was closed
            known = None if known is None else SigningEntry(known.policy)
        self._known[stream] = (known, now)
        return known

    def signature(
        self, stream: Produces | Consumes, body: bytes, now: float | None = None, *, to: str | None = None
    ) -> tuple[str | bytes, ...]:
        """Signs a message: the field `s` and its value; nothing without a key, unless one is required.

        Args:
            stream: the stream whose keys sign.
            body: the field `m`.
            now: seconds since 1970.
            to: the key of the stream that the message is added to, if it is another one.

        Raises:
            KeyMissing: the stream requires signatures, and the agent has no key.
        """
        keys = self.keys(stream.stream)
        if keys:
            now = time.time() if now is None else now
            return "s", sign(key_that_signs(keys, now), to or stream.key, body, now)
        if self.policy(stream) != REQUIRE:
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
        self._firsts: dict[bytes, str] = {}

    def flaw(self, entry: Entry) -> Reason | None:
        """Verifies an entry with a body. Returns the reason if its signature is not valid, else None."""
        return self._keyring.flaw(self._stream, self._key, entry)

    def copy_flaw(self, entry: Entry, first: str) -> Reason | None:
        """Tells whether a valid entry is a copy: the reason, else None.

        Args:
            entry: with a valid signature.
            first: the entry in which the server says that the group met the message. What this process was
                told before counts more: who can write to the server can remove what is known there.
        """
        digest = entry.digest
        first = self._firsts.setdefault(digest, first)
        if len(self._firsts) > _REMEMBERED:
            del self._firsts[next(iter(self._firsts))]
        return None if first == entry.origin else Reason.REPLAYED
