"""What a sender hands on: a message with its options, and the record that becomes an entry of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, get_args

import msgspec

from agentstream.errors import InvalidMessage, NoRoute, SettingsError, check_timeout
from agentstream.payloads.types import payload_of, version_of
from agentstream.protocol.envelope import BROADCAST, Message, MessageType, encode, is_reference, is_unicode
from agentstream.protocol.routes import Produces
from agentstream.sent import SentMessage
from agentstream.transport.client import Argument

DEFAULT_TIMEOUT = 30.0
ROUTE_PATIENCE = 10.0
"""Seconds to wait for a route that is not declared yet."""

FAR = 1e11
"""Seconds since 1970 that nobody means: three thousand years from now, or milliseconds of today."""

_LATER: Any = None
"""The stream of a record that was not offered to one yet, and the future of its entry."""

OnFull = Literal["wait", "raise", "shed"]
"""What to do with a message when its stream is full."""

_ON_FULL = get_args(OnFull)


class MessageOptions(TypedDict, total=False):
    """Options of every message; see `Agent.send_message`."""

    stream: str | None
    correlation_id: str | None
    expires_at: float | None
    key: str | None
    schema_version: int | None


class SendOptions(MessageOptions, total=False):
    """Options of a message that expects no reply; see `Agent.send_message`."""

    once: str | None


class OutgoingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message for `Agent.send_many`; its fields are the arguments of `Agent.send_message`."""

    type: MessageType
    payload: Any
    to: str | None = None
    stream: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expires_at: float | None = None
    key: str | None = None
    schema_version: int | None = None
    once: str | None = None


class OutgoingRecord(msgspec.Struct, eq=False):
    """A message that fits the envelope's schema, with the options of sending it.

    `once` is an idempotency key: within an hour, a stream gets one message with it from a sender to an
    addressee. `timeout` and `patience` are seconds: until the send fails, and to wait for a route that is not
    declared yet. `since`, `deadline` and `signed_at` are times of the event loop's clock. `options` are name
    and value pairs for `as1_add`: `once`, `key`, and further fields of the entry. `entry` resolves to the id
    of the entry. Raises InvalidMessage if the message or an option is invalid.
    """

    message: Message
    stream: str | None = None
    once: str | None = None
    on_full: OnFull = "wait"
    timeout: float = DEFAULT_TIMEOUT
    patience: float = ROUTE_PATIENCE
    data: bytes = b""
    since: float = 0.0
    deadline: float = 0.0
    trace: bytes = b""
    produces: Produces = _LATER
    options: Sequence[Argument] = ()
    signature: Sequence[Argument] = ()
    signed_at: float = math.inf
    sign: Callable[[], Sequence[Argument]] = tuple
    entry: asyncio.Future[str] = _LATER

    def __post_init__(self) -> None:
        """Checks the options, and encodes the message."""
        self.data = encode(self.message)
        if self.on_full not in _ON_FULL:
            raise ValueError(f"on_full= is one of {', '.join(_ON_FULL)}, not {self.on_full!r}")
        if self.on_full == "shed" and self.message.type != "event":
            raise InvalidMessage(f"only events may be shed, and this is a {self.message.type}")
        expiry = self.message.expires_at
        if expiry is not None and not (expiry < FAR or expiry == math.inf):
            looks = "is no time" if math.isnan(expiry) else "looks like milliseconds"
            raise InvalidMessage(f"expires_at= is seconds since 1970; {expiry:g} {looks}")
        # the server would refuse the whole batch because of this key
        if self.once is not None and not (is_reference(self.once) and is_unicode(self.once)):
            raise InvalidMessage("once= is a string of 1 to 512 characters")
        self.since = asyncio.get_running_loop().time()
        self.deadline = self.since + self.timeout

    def sent(self, entry: str) -> SentMessage:
        """Returns the result of sending, given the id of the entry; empty if the record was shed."""
        return SentMessage(self.message.id, self.produces.stream, entry)

    def sign_with(self, sign: Callable[[], Sequence[Argument]], now: float) -> None:
        """Signs the record; `sign_again` calls the function again. Raises SettingsError without a key."""
        self.signature = sign()
        self.signed_at = now
        self.sign = sign

    def sign_again(self, now: float) -> None:
        """Renews the signature: consumers take an old one for a replay."""
        # without the key, the old signature is the best there is
        with contextlib.suppress(SettingsError):
            self.sign_with(self.sign, now)


def record_of(
    sender: str,
    one: OutgoingMessage,
    timeout: float,
    on_full: OnFull = "wait",
    patience: float = ROUTE_PATIENCE,
) -> OutgoingRecord:
    """Makes the record of a message of the agent `sender`. Raises NoRoute if it names no destination."""
    if not isinstance(one, OutgoingMessage):
        raise InvalidMessage(
            f"a message to send is an OutgoingMessage(to=…, type=…, payload=…), not {one!r:.50}"
        )
    if one.to is None and one.stream is None:
        raise NoRoute("a message needs an addressee, a stream, or both: to= or stream=")
    check_timeout(timeout)
    version = one.schema_version
    message = Message(
        v=1,
        id=new_id(),
        sender=sender,
        to=BROADCAST if one.to is None else one.to,
        type=one.type,
        payload=payload_of(one.payload),
        timestamp=time.time(),
        correlation_id=one.correlation_id,
        reply_to=one.reply_to,
        expires_at=one.expires_at,
        key=one.key,
        schema_version=version_of(one.payload) if version is None else version,
    )
    return OutgoingRecord(message, one.stream, one.once, on_full, timeout, patience)


def new_id() -> str:
    """Makes a random UUID (version 4), in a fraction of the time that `uuid.uuid4` takes."""
    digits = random.getrandbits(128).to_bytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"
