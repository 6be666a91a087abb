"""Routes: the streams that an agent produces to and consumes, in a field of the namespace's routes hash.

The operator writes an agent's route once its groups exist; the SDK reads the agent's own, and that of the
addressee of a message.
"""

from __future__ import annotations

import msgspec

from agentstream.errors import ProtocolError

OFF, WARN, REQUIRE = "Off", "Warn", "Require"
"""Policies for messages without a valid signature."""

_STRENGTH = {OFF: 0, WARN: 1}

MAX_MESSAGE_BYTES = 1 << 20
"""The most bytes of a message where nothing else is declared."""


class Produces(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream that the agent may add to.

    Attributes:
        stream: name of the AgentStream.
        key: its key on the server.
        broadcast: whether every group is to acknowledge each message.
        groups: on a broadcast stream, the declared groups, sorted.
        signatures: whether messages are signed: `Off`, `Warn` (once there is a key) or `Require`.
        contracts: digest of the stream's contracts; empty if there are none.
        max_message_bytes: the most bytes of a message.
    """

    stream: str
    key: str
    broadcast: bool = False
    groups: tuple[str, ...] = ()
    signatures: str = OFF
    contracts: str = ""
    max_message_bytes: int = MAX_MESSAGE_BYTES


class Consumes(msgspec.Struct, frozen=True, omit_defaults=True):
    """A group that the agent reads, and its delivery policy. Times are in milliseconds.

    Attributes:
        stream: name of the AgentStream.
        key: its key on the server.
        group: name of the consumer group.
        broadcast: whether the stream is a broadcast stream.
        deliver_all: whether to deliver messages that are addressed to others, too.
        lease: for how long a consumer holds an entry without renewing.
        max_deliveries: attempts after which a message becomes a dead letter.
        backoff_initial: delay before the second attempt.
        backoff_factor: the factor by which the delay grows with each further attempt.
        backoff_max: the longest delay.
        dead_letters: whether messages become dead letters; if not, they are retried for ever.
        deadline: for how long a handler may run; 0 for no limit.
        signatures: policy for messages without a valid signature: `Off`, `Warn` or `Require`.
        contracts: digest of the stream's contracts; empty if there are none.
        max_message_bytes: the most bytes of a message.
    """

    stream: str
    key: str
    group: str
    broadcast: bool = False
    deliver_all: bool = False
    lease: int = 10_000
    max_deliveries: int = 5
    backoff_initial: int = 1_000
    backoff_factor: float = 2.0
    backoff_max: int = 300_000
    dead_letters: bool = True
    deadline: int = 0
    signatures: str = OFF
    contracts: str = ""
    max_message_bytes: int = MAX_MESSAGE_BYTES


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """All streams of one agent, sorted by name."""

    produces: tuple[Produces, ...] = ()
    consumes: tuple[Consumes, ...] = ()


def stronger(one: str, other: str) -> str:
    """The stronger of two policies for signatures; an unknown one counts as `Require`."""
    found = max(_STRENGTH.get(one, 2), _STRENGTH.get(other, 2))
    return (OFF, WARN, REQUIRE)[found]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Route)


def encode_route(route: Route) -> bytes:
    """Encodes the value of an agent's field in the routes hash."""
    return _encoder.encode(route)


def decode_route(data: bytes) -> Route:
    """Decodes a field of the routes hash.

    Raises:
        ProtocolError: the field is not a route.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a field of the routes hash is not a route: {error}") from error
