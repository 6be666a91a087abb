"""The envelope in which agents send each other data: its fields, its JSON, and its published JSON Schema.

What is sent is what the schema says, and nothing else is accepted: both ways are tested against the schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

import msgspec

from agentstream.errors import InvalidMessage

BROADCAST = "broadcast"
"""The addressee that means every group of the stream."""

VERSION = 1

# Not only `$`, which in Python would let a line break follow.
_AGENT = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(?!\n)$"
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?!\n)$"

MessageType = Literal["task_request", "task_result", "event"]
_Agent = Annotated[str, msgspec.Meta(pattern=_AGENT, max_length=63)]
_Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message, as it stands on the stream.

    Attributes:
        v: version of the envelope.
        id: UUID of the message, the same on every attempt to deliver it.
        sender: the agent that sent it; `from` in JSON.
        to: the agent that is to handle it, or `broadcast`.
        type: what kind of message it is.
        payload: the data: a JSON object.
        timestamp: when it was sent, in seconds since 1970.
        correlation_id: id of the message that this one answers or belongs to.
        reply_to: where an answer is expected.
        expires_at: when it loses its meaning, in seconds since 1970; later it becomes a dead letter.
        key: messages with the same ordering key are handled one after the other in each group.
        schema_version: version of the payload's schema, where there are several.
    """

    v: Annotated[Literal[1], msgspec.Meta(description="version of the envelope")]
    id: Annotated[
        str, msgspec.Meta(pattern=_UUID, description="the same on every attempt to deliver the message")
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


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)
_version_decoder = msgspec.json.Decoder(_AnyVersion)


def encode(message: Message) -> bytes:
    """The JSON of a message.

    Raises:
        InvalidMessage: a field does not fit the schema, or the payload holds what JSON cannot.
    """
    try:
        data = _encoder.encode(message)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"the message is no JSON: {error}") from error
    decode(data)
    return data


def decode(data: bytes) -> Message:
    """Reads the JSON of a message.

    Raises:
        InvalidMessage: it is of a version that this SDK does not know, or does not fit the schema.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        version = _version(data)
        if version in (None, VERSION):
            raise InvalidMessage(str(error)) from error
        raise InvalidMessage(
            f"the message is of version {version}, and this SDK knows version {VERSION}",
            reason="UnknownVersion",
        ) from error


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
