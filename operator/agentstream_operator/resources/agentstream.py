"""The AgentStream resource: a stream, its retention and its producers."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from agentstream.protocol.keys import DERIVED, default_stream_key
from agentstream.protocol.routes import MAX_MESSAGE_BYTES

from .contracts import ONE_OF_EACH, ContractSpec
from .duration import Duration, at_least, parse_duration
from .meta import API_VERSION, Resource
from .model import Bool, DnsLabel, Int, Model, Text
from .rules import Rule, immutable
from .status import NO_STATUS, AgentStreamStatus

# with other braces, the names derived from the key would hash to another slot
_ONE_TAG = "^[^{}]*([{][^{}]+[}][^{}]*)?$"
# agents of another stream may have rights to names that keys.py derives, and only the operator to its own
_DERIVED = f"[}}].*:({'|'.join(DERIVED)})(:|$)"
_OPERATORS = "^(agentstream:|[{]?agentstream-probe[}]?(:|$))"

StreamKey = Annotated[
    str,
    Text(
        pattern="^[A-Za-z0-9._:{}-]{1,200}$",
        max_length=200,
        what="a stream key (at most 200 of A-Z, a-z, 0-9 and ._:{}-)",
    ),
    Rule(
        cel=f"self.matches('{_ONE_TAG}')",
        message="braces may only form one non-empty hash tag, such as {team-a.tasks}",
        holds=lambda key: re.fullmatch(_ONE_TAG, key) is not None,
    ),
    Rule(
        cel=f"!self.matches('{_DERIVED}')",
        message="a suffix such as :retry:coder is reserved for keys derived from a stream",
        holds=lambda key: re.search(_DERIVED, key) is None,
    ),
    Rule(
        cel=f"!self.matches('{_OPERATORS}')",
        message="keys that begin with agentstream: or {agentstream-probe} are reserved for the operator",
        holds=lambda key: re.search(_OPERATORS, key) is None,
    ),
]


class OnFull(StrEnum):
    """What gives way when the stream reaches a limit."""

    TRIM_ACKNOWLEDGED = "TrimAcknowledged"
    BACKPRESSURE = "Backpressure"
    TRIM_OLDEST = "TrimOldest"


class StreamDeletion(StrEnum):
    """What happens to the data when the AgentStream is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"
    DELETE_IF_EMPTY = "DeleteIfEmpty"


class ManagementPolicy(StrEnum):
    """Whether the operator may change the server."""

    MANAGED = "Managed"
    OBSERVE_ONLY = "ObserveOnly"


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is listed twice")
    return names


class Retention(Model):
    """Retention: how long messages are kept, and what happens at a limit."""

    min_age: Annotated[Duration, at_least("1s")] = parse_duration("24h")
    """Minimum time for which messages are kept, such as 24h; unsettled messages are kept longer."""

    max_length: Annotated[Int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    """Maximum number of messages before onFull applies."""

    max_bytes: Annotated[Int, Field(ge=1_048_576, le=9_007_199_254_740_991)] | None = None
    """Maximum memory of the stream in bytes before onFull applies; no limit if absent."""

    on_full: OnFull = OnFull.TRIM_ACKNOWLEDGED
    """Policy at a limit. TrimAcknowledged: messages that every group has settled are removed before minAge.
    Backpressure: new messages are refused, and senders wait. TrimOldest: the oldest messages are removed,
    settled or not."""


class SignaturePolicy(StrEnum):
    """How messages without a valid signature are treated."""

    OFF = "Off"
    WARN = "Warn"
    REQUIRE = "Require"


class Signing(Model):
    """Signing of messages."""

    policy: SignaturePolicy
    """Off: messages are neither signed nor verified. Warn: messages without a valid signature are delivered,
    counted and logged. Require: they become dead letters."""

    rotation: Annotated[Int, Field(ge=0, le=1_000_000)] = 0
    """Raise it to create a new key; the previous key stays valid until the next rotation."""


def _not_lowered(old: AgentStreamSpec, new: AgentStreamSpec) -> bool:
    return old.signing is None or new.signing is None or new.signing.rotation >= old.signing.rotation


class AgentStreamSpec(Model):
    """Desired state of a stream."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("key"),
        Rule(
            cel=(
                "!has(self.signing) || !has(oldSelf.signing)"
                " || self.signing.rotation >= oldSelf.signing.rotation"
            ),
            message="signing.rotation can only be raised",
            holds_between=_not_lowered,
            field_path=".signing",
        ),
    )

    key: StreamKey | None = None
    """Key of the stream on the server; default {<namespace>.<name>}. Immutable."""

    retention: Retention = Retention()
    """How long messages are kept, and what happens at a limit."""

    producers: Annotated[
        tuple[DnsLabel, ...],
        Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
        AfterValidator(_distinct),
    ] = ()
    """Agents that may send to the stream. The server cannot forbid an agent of a stream to trim it by adding,
    or to read in the name of other groups: agents that distrust each other get streams of their own."""

    max_message_bytes: Annotated[Int, Field(ge=1024, le=16_777_216)] = MAX_MESSAGE_BYTES
    """Maximum bytes of one message, as JSON. A larger one is refused when it is sent; it becomes a dead
    letter if it was added all the same."""

    broadcast: Bool = False
    """Whether broadcasts are sent to this stream; each of its groups is then expected to acknowledge them."""

    signing: Signing | None = None
    """Signing of messages; Off if absent."""

    contracts: Annotated[tuple[ContractSpec, ...], Field(max_length=50), ONE_OF_EACH] = ()
    """Schemas of payloads; payloads of message types without a contract are not validated."""

    deletion_policy: StreamDeletion = StreamDeletion.RETAIN
    """What happens to the stream when this resource is deleted. DeleteIfEmpty: deleted unless a group has
    unsettled messages or dead letters."""

    management_policy: ManagementPolicy = ManagementPolicy.MANAGED
    """ObserveOnly: the operator updates the status and changes nothing on the server."""


class AgentStream(Resource):
    """A stream."""

    api_version: Literal["agentstream.dev/v1alpha1"] = API_VERSION
    kind: Literal["AgentStream"] = "AgentStream"
    spec: AgentStreamSpec = AgentStreamSpec()
    status: Annotated[AgentStreamStatus | None, NO_STATUS] = None

    @property
    def stream_key(self) -> str:
        """Key of the stream on the server."""
        return self.spec.key or default_stream_key(self.metadata.namespace, self.metadata.name)

    @property
    def signatures(self) -> SignaturePolicy:
        """How messages without a valid signature are treated."""
        return SignaturePolicy.OFF if self.spec.signing is None else self.spec.signing.policy
