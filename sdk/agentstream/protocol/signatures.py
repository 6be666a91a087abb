"""Signs and verifies messages: a valid one was sent to its stream by a holder of its keys, and not altered.

Field `s` of an entry is `<key id>:<seconds since 1970>:<mac>`. The mac is HMAC-SHA256 in base64url over the
stream's key on the server, that time, and the bytes of field `m` as they stand on the stream: nothing is ever
serialised again. See docs/adr/0013-signatures.md for what this proves and what it does not.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from agentstream.errors import SettingsError
from agentstream.protocol.entry import Entry
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import OFF

WINDOW: Final = 300.0
"""Seconds within which a message that was signed has to be added to its stream."""

SKEW: Final = 60.0
"""Seconds by which an agent's clock and the server's may differ."""

_DOMAIN = b"agentstream1"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class SigningKey(msgspec.Struct, frozen=True):
    """One of a stream's keys.

    Attributes:
        id: names the key in signatures.
        secret: the key: the bytes of this text; not part of the representation.
        signs_from: when senders begin to use it, in seconds since 1970: all agents must have it by then.
        rotation: the number of the rotation that it was made for.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}(?!\n)$")]
    secret: Annotated[str, msgspec.Meta(min_length=32, max_length=1_024)]
    signs_from: int = 0
    rotation: int = 0

    def __repr__(self) -> str:
        return f"SigningKey(id={self.id!r}, signs_from={self.signs_from}, rotation={self.rotation})"


MOST_KEYS: Final = 16
"""Keys of a stream that are read: two are valid at a time, and a Secret may hold thousands."""

Keys = Annotated[tuple[SigningKey, ...], msgspec.Meta(max_length=MOST_KEYS)]
"""The keys of a stream, the newest first."""


class SigningEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent's Secret says of a stream: whoever can only write to the server cannot change it.

    Attributes:
        policy: the least that is asked of messages: a route may ask for more.
        keys: whoever has keys signs, whatever the policy.
    """

    policy: str = OFF
    keys: Keys = ()


_encoder = msgspec.json.Encoder()
_keys_decoder = msgspec.json.Decoder(Keys)
_decoder = msgspec.json.Decoder(SigningEntry)
# of a text that is nested too deeply, msgspec says the latter
_UNREADABLE = (msgspec.MsgspecError, RecursionError)


ENTRIES: Final = "signing-"
"""What the names of these entries of an agent's Secret begin with."""


def entry_name(stream: str) -> str:
    """The entry of an agent's Secret with the policy and the keys of a stream."""
    return f"{ENTRIES}{stream}"


def encode_signing(signing: SigningEntry) -> str:
    """The content of that entry."""
    return _encoder.encode(signing).decode()


def decode_signing(text: str) -> SigningEntry:
    """Reads that entry.

    Raises:
        SettingsError: it is no policy and keys.
    """
    try:
        return _decoder.decode(text)
    except _UNREADABLE:
        # its message may quote the text, which is secret
        raise SettingsError("an entry with signing keys has no policy and keys") from None


def encode_keys(keys: Keys) -> str:
    """The content of a stream's own Secret."""
    return _encoder.encode(keys).decode()


def decode_keys(text: str) -> Keys:
    """Reads a stream's own Secret.

    Raises:
        SettingsError: it is not a list of keys.
    """
    try:
        return _keys_decoder.decode(text)
    except _UNREADABLE:
        # its message may quote the text, which is secret
        raise SettingsError("an entry with signing keys is not a list of keys") from None


def key_that_signs(keys: Sequence[SigningKey], now: float) -> SigningKey:
    """The newest key that is in use by now; the oldest if none is, by this clock."""
    return next((key for key in keys if key.signs_from <= now), keys[-1])


def sign(key: SigningKey, stream: str, body: bytes, now: float) -> bytes:
    """Makes the field `s` of an entry.

    Args:
        key: the signing key.
        stream: the key of the stream on the server.
        body: the field `m`.
        now: seconds since 1970.
    """
    at = b"%d" % now
    return b"%s:%s:%s" % (key.id.encode(), at, _mac(key.secret, stream, at, body))


def verify(keys: Sequence[SigningKey], stream: str, entry: Entry) -> Reason | None:
    """Verifies the signature of an entry. Returns the reason if it is not valid, else None.

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
    # the mac is valid, so `at` is a time
    return None if -SKEW <= entry.added - int(at) <= WINDOW + SKEW else Reason.REPLAYED


def answer_domain(key: str, failure: str | None) -> str:
    """The text that an answer to a request is signed for, in place of a stream's key.

    Args:
        key: of the requester's reply stream.
        failure: the reason for which the request became a dead letter; None for an answer.
    """
    return key if failure is None else f"{key}:{failure}"


def _mac(secret: str, stream: str, at: bytes, body: bytes) -> bytes:
    keyed = _keyed(secret, stream).copy()
    keyed.update(at + b"\0")
    keyed.update(body)
    return binascii.b2a_base64(keyed.digest(), newline=False).translate(_URL_SAFE).rstrip(b"=")


@lru_cache(maxsize=256)
def _keyed(secret: str, stream: str) -> hmac.HMAC:
    """The start of all macs of a stream; neither its key nor a time contains a zero byte."""
    return hmac.new(secret.encode(), b"%s\0%s\0" % (_DOMAIN, stream.encode()), hashlib.sha256)
