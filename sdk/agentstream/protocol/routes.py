"""What an agent reads to know its streams: one field per agent in the namespace's routes hash.

The operator writes an agent's route once the groups in it exist; the SDK reads its own at connect and that of
an addressee when it sends.
"""

from __future__ import annotations

import msgspec

from agentstream.errors import ProtocolError

OFF, WARN, REQUIRE = "Off", "Warn", "Require"
"""What becomes of messages without a valid signature."""


class Produces(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream that the agent may add to.

    Attributes:
        stream: name of the AgentStream.
        key: its key on the server.
        broadcast: whether every group is to acknowledge what is added.
        groups: on a broadcast stream, the declared groups, sorted.
        signatures: whether what is added is to be signed: `Off`, `Warn` (once there is a key) or `Require`.
        contracts: what changes whenever the stream's contracts do; empty where there are none.
    """

    stream: str
    key: str
    broadcast: bool = False
    groups: tuple[str, ...] = ()
    signatures: str = OFF
    contracts: str = ""


class Consumes(msgspec.Struct, frozen=True, omit_defaults=True):
    """A group that the agent reads for, and the delivery policy of that group. Times are in milliseconds.

    Attributes:
        stream: name of the AgentStream.
        key: its key on the server.
        group: name of the consumer group.
        broadcast: whether the stream is a broadcast stream.
        deliver_all: deliver what is addressed to others, too.
        lease: how long a delivered entry stays with a consumer that does not renew.
        max_deliveries: attempts after which a message becomes a dead letter.
        backoff_initial: delay before the second attempt.
        backoff_factor: by what the delay grows with every further attempt.
        backoff_max: the longest delay.
        dead_letters: whether the group gives messages up at all; if not, they are retried for ever.
        deadline: how long a handler may take; 0 for as long as it likes.
        signatures: what becomes of messages without a valid signature: `Off`, `Warn` or `Require`.
        contracts: what changes whenever the stream's contracts do; empty where there are none.
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


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """All streams of one agent, sorted by name."""

    produces: tuple[Produces, ...] = ()
    consumes: tuple[Consumes, ...] = ()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Route)


def encode_route(route: Route) -> bytes:
    """The value of the agent's field in the routes hash."""
    return _encoder.encode(route)


def decode_route(data: bytes) -> Route:
    """Reads a field of the routes hash.

    Raises:
        ProtocolError: the field is not a route.
    """
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the routes hash holds something that is not a route: {error}") from error
