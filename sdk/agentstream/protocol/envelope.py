"""The envelope in which agents send each other data: its fields, its JSON, and its published JSON Schema.

Messages that do not fit the schema are neither sent nor accepted.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from agentstream.errors import InvalidMessage
from agentstream.protocol.keys import DNS_LABEL

BROADCAST = "broadcast"
"""The addressee that means every group of the stream."""

VERSION = 1

# `$` alone would let a line break follow in Python.
_AGENT = rf"^{DNS_LABEL}(?!\n)$"
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?!\n)$"

MessageType = Literal["task_request", "task_result", "event"]
# Patterns are in the schema only; `decode` checks them itself, in a third of the time.
_Agent = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": _AGENT}, max_length=63)]
_LONGEST_REFERENCE = 512
_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_REFERENCE)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message.

    Attributes:
        v: version of the envelope.
        id: UUID of the message, the same on every attempt to deliver it.
        sender: the agent that sent it; `from` in JSON.
        to: the agent that is to handle it, or `broadcast`.
        type: the type of message.
        payload: the data: a JSON object.
        timestamp: when it was sent, in seconds since 1970.
        correlation_id: id of the message that this one answers or belongs to.
        reply_to: key of the stream on which an answer is expected.
        expires_at: when the message becomes a dead letter, in seconds since 1970.
        key: ordering key: each group handles messages with the same one in order.
        schema_version: version of the payload's schema, if there are several.
    """

    v: Annotated[Literal[1], msgspec.Meta(description="version of the envelope")]
    id: Annotated[
        str,
        msgspec.Meta(
            extra_json_schema={"pattern": _UUID},
            description="the same on every attempt to deliver the message",
        ),
    ]
    sender: Annotated[_Agent, msgspec.Meta(description="the agent that sent the message")] = msgspec.field(
        name="from"
    )
    to: Annotated[_Agent, msgspec.Meta(description="the agent that is to handle the message, or `broadcast`")]
    type: MessageType
    payload: Annotated[dict[str, Any], msgspec.Meta(description="the data")]
    timestamp: Annotated[_Seconds, msgspec.Meta(description="when it was sent, in seconds since 1970")]
    correlation_id: (
        Annotated[_Reference, msgspec.Meta(description="id of the message that this one belongs to")] | None
    ) = None
    reply_to: Annotated[_Reference, msgspec.Meta(description="where an answer is expected")] | None = None
    expires_at: (
        Annotated[_Seconds, msgspec.Meta(description="when it becomes a dead letter, in seconds since 1970")]
        | None
    ) = None
    key: (
        Annotated[
            _Reference,
            msgspec.Meta(description="messages with the same one are handled one after the other"),
        ]
        | None
    ) = None
    schema_version: (
        Annotated[int, msgspec.Meta(ge=1, le=1_000_000, description="version of the payload's schema")] | None
    ) = None


class _AnyVersion(msgspec.Struct):
    v: int


class _AnyObject(msgspec.Struct):
    payload: msgspec.Raw


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)
_version_decoder = msgspec.json.Decoder(_AnyVersion)
_syntax = msgspec.json.Decoder(_AnyObject)
_is_uuid = re.compile(_UUID).match
_SOUND: dict[str, Any] = {
    "v": VERSION,
    "id": "00000000-0000-4000-8000-000000000000",
    "payload": {},
    "timestamp": 0,
}
# the fields that are the same in many messages
_REPEATED = ("v", "from", "to", "type", "reply_to", "schema_version")


def encode(message: Message) -> bytes:
    """Encodes a message as JSON.

    Raises:
        InvalidMessage: a field does not fit the schema, or the payload cannot be encoded.
    """
    try:
        data = _encoder.encode(message)
        check_numbers(message.payload, data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"the message is no JSON: {error}") from error
    if not _is_sound(message, data):
        # slower, but its error says what is wrong
        _explain(message)
        decode(data)
    return data


def check_addressee(to: str) -> None:
    """Raises InvalidMessage for what is no name of an agent."""
    if not isinstance(to, str) or not _is_agent(to):
        meant = f"; did you mean {to.lower()!r}?" if isinstance(to, str) and _is_agent(to.lower()) else ""
        raise InvalidMessage(
            f"to= is {to!r}, and names of agents have up to 63 lower-case letters, digits and hyphens{meant}"
        )


def _explain(message: Message) -> None:
    """Says what is wrong in the words of the caller, where that is easily mistaken."""
    if message.type not in get_args(MessageType):
        raise InvalidMessage(f"type= is one of {', '.join(get_args(MessageType))}, not {message.type!r}")
    check_addressee(message.to)
    expiry: object = message.expires_at
    if expiry is not None and (isinstance(expiry, bool) or not isinstance(expiry, int | float)):
        raise InvalidMessage(f"expires_at= is seconds since 1970, such as time.time() + 60; not {expiry!r}")


def check_numbers(payload: object, data: bytes) -> None:
    """Refuses NaN and Infinity, which msgspec would encode as null.

    Args:
        payload: the payload.
        data: JSON that contains it.

    Raises:
        ValueError: NaN or Infinity is in it.
    """
    if b"null" in data and _holds_no_number(_plain(payload)):
        raise ValueError("the payload holds NaN or Infinity")


def _plain(payload: object) -> object:
    try:
        return msgspec.to_builtins(payload, str_keys=True)
    except TypeError:
        # a part is JSON already (msgspec.Raw)
        return payload


def _holds_no_number(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_holds_no_number, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_no_number, value))


def _is_sound(message: Message, data: bytes) -> bool:
    """Whether a quick check shows that the message fits the schema; else `decode` must decide."""
    try:
        return (
            _are_sound(
                message.v,
                message.sender,
                message.to,
                message.type,
                message.reply_to,
                message.schema_version,
            )
            and _is_uuid(message.id) is not None
            and isinstance(message.payload, dict)
            and bool not in (type(message.timestamp), type(message.expires_at))
            and 0 <= message.timestamp < math.inf
            and (message.expires_at is None or 0 <= message.expires_at < math.inf)
            and (message.correlation_id is None or is_reference(message.correlation_id))
            and (message.key is None or is_reference(message.key))
            # msgspec.Raw is encoded unchecked
            and _syntax.decode(data) is not None
            and (data.isascii() or bool(data.decode()))
        )
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        return False


@lru_cache(maxsize=4096, typed=True)
def _are_sound(*values: object) -> bool:
    """Whether the `_REPEATED` fields of a message fit the schema."""
    try:
        message = msgspec.convert(_SOUND | dict(zip(_REPEATED, values, strict=True)), Message)
    except msgspec.ValidationError:
        return False
    return _is_agent(message.sender) and _is_agent(message.to)


@lru_cache(maxsize=4096)
def _is_agent(name: str) -> bool:
    return re.match(_AGENT, name) is not None


def is_reference(value: object) -> bool:
    """Whether a value fits `key`, `correlation_id` and `reply_to`."""
    return isinstance(value, str) and 1 <= len(value) <= _LONGEST_REFERENCE


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it has no half of a surrogate pair."""
    return text.encode(errors="ignore").decode() == text


def decode(data: bytes) -> Message:
    """Decodes the JSON of a message.

    Raises:
        InvalidMessage: it is of a version that this SDK does not know, or does not fit the schema.
    """
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        version = _version(data)
        if version in (None, VERSION):
            raise InvalidMessage(str(error)) from error
        raise InvalidMessage(
            f"the message is of version {version}, and this SDK knows version {VERSION}",
            reason="UnknownVersion",
        ) from error
    if _is_uuid(message.id) is None or not _is_agent(message.sender) or not _is_agent(message.to):
        raise InvalidMessage("`id` is no UUID, or `from` or `to` is no name of an agent")
    return message


def _version(data: bytes) -> int | None:
    try:
        return _version_decoder.decode(data).v
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def message_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a message."""
    (schema,), components = msgspec.json.schema_components([Message], ref_template="#/$defs/{name}")
    described = cast("dict[str, Any]", components[schema["$ref"].rpartition("/")[2]])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "AgentStream message",
        "description": "One message between agents: the value of an entry's field `m`.",
        **{name: part for name, part in described.items() if name not in ("title", "description")},
    }
