"""Signatures: that a message was sent to its stream by one of those who have its keys, and not altered since.

Field `s` of an entry is `<key id>:<seconds since 1970>:<mac>`. The mac is HMAC-SHA256 in base64url over the
stream's key on the server, that time, and the bytes of field `m` as they stand on the stream: nothing is ever
serialised again. See docs/adr/0013-signatures.md for what this proves and what it does not.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from agentstream.entries import Entry
from agentstream.errors import SettingsError
from agentstream.routes import OFF, WARN, Consumes, Produces
from agentstream.triage import Reason

WINDOW: Final = 300.0
"""Seconds within which a message that was signed has to be added to its stream."""

SKEW: Final = 60.0
"""Seconds by which an agent's clock and the server's may differ."""

_DOMAIN = b"agentstream1"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
FRESH: Final = 15.0
"""Seconds for which keys that were read count as those that there are."""

_REREAD = 1.0
_REMEMBERED = 50_000


class KeyMissing(SettingsError):  # noqa: N818 - named after what is wrong
    """The stream requires signatures, and the agent has no key for it, or not yet."""


class SigningKey(msgspec.Struct, frozen=True):
    """One of a stream's keys.

    Attributes:
        id: names the key in signatures.
        secret: the key itself: the bytes of this text; kept out of every representation.
        signs_from: when senders begin to use it, in seconds since 1970: it has to be everywhere by then.
        rotation: the number of the rotation that it was made for.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
    secret: Annotated[str, msgspec.Meta(min_length=32)]
    signs_from: int = 0
    rotation: int = 0

    def __repr__(self) -> str:
        return f"SigningKey(id={self.id!r}, signs_from={self.signs_from}, rotation={self.rotation})"


Keys = tuple[SigningKey, ...]
"""The keys of a stream, the newest first."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Keys)


def entry_name(stream: str) -> str:
    """The entry of an agent's Secret with the keys of a stream."""
    return f"signing-{stream}"


def encode_keys(keys: Keys) -> str:
    """The content of that entry."""
    return _encoder.encode(keys).decode()


def decode_keys(text: str) -> Keys:
    """Reads that entry.

    Raises:
        SettingsError: it is not a list of keys.
    """
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError:
        # what that says may quote the text, which is secret
        raise SettingsError("an entry with signing keys is not a list of keys") from None


def key_that_signs(keys: Sequence[SigningKey], now: float) -> SigningKey:
    """The newest key that is to sign by now; the oldest where this clock says that none is."""
    return next((key for key in keys if key.signs_from <= now), keys[-1])


def sign(key: SigningKey, stream: str, body: bytes, now: float) -> bytes:
    """The field `s` of an entry.

    Args:
        key: what to sign with.
        stream: the key of the stream on the server.
        body: the field `m`.
        now: seconds since 1970.
    """
    at = b"%d" % now
    return b"%s:%s:%s" % (key.id.encode(), at, _mac(key.secret, stream, at, body))


def verify(keys: Sequence[SigningKey], stream: str, entry: Entry) -> Reason | None:
    """What is wrong with the signature of an entry; None if it is valid.

    Args:
        keys: of the stream.
        stream: the key of the stream on the server.
        entry: with a body.
    """
    if entry.signature is None:
        return Reason.UNSIGNED
    try:
        key_id, at, mac = entry.signature.split(b":")
    except ValueError:
        return Reason.FORGED
    for key in keys:
        if key.id.encode() == key_id:
            break
    else:
        return Reason.UNKNOWN_KEY
    if not hmac.compare_digest(mac, _mac(key.secret, stream, at, entry.body or b"")):
        return Reason.FORGED
    # only now is it known that a time stands there
    return None if -SKEW <= entry.added - int(at) <= WINDOW + SKEW else Reason.REPLAYED


def answer_domain(key: str, failure: str | None) -> str:
    """What an answer to a request is signed for, in place of a stream's key.

    Args:
        key: of the stream of whoever asked.
        failure: why the request became a dead letter; None if it is answered.
    """
    return key if failure is None else f"{key}:{failure}"


def _mac(secret: str, stream: str, at: bytes, body: bytes) -> bytes:
    keyed = _keyed(secret, stream).copy()
    keyed.update(at + b"\0")
    keyed.update(body)
    return binascii.b2a_base64(keyed.digest(), newline=False).translate(_URL_SAFE).rstrip(b"=")


@lru_cache(maxsize=256)
def _keyed(secret: str, stream: str) -> hmac.HMAC:
    """What all signatures of a stream begin with; neither a stream's key nor a time contains a zero byte."""
    return hmac.new(secret.encode(), b"%s\0%s\0" % (_DOMAIN, stream.encode()), hashlib.sha256)


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
