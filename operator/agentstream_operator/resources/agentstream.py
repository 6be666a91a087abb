"""The AgentStream resource: one stream, how long it keeps messages, and who may add to it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from agentstream.protocol.keys import default_stream_key

from .contracts import ONE_OF_EACH, ContractSpec
from .duration import Duration, at_least, parse_duration
from .meta import API_VERSION, Resource
from .model import Bool, DnsLabel, Int, Model, Text
from .rules import Rule, immutable
from .status import AgentStreamStatus

# any other brace would make Redis hash a different part of the key than the names derived from it
_ONE_TAG = "^[^{}]*([{][^{}]+[}][^{}]*)?$"
# names that keys.py derives from the keys of streams and agents: others may have rights to these
_DERIVED = "[}].*:((meta|gate|order|contracts)$|(sent|once|done|retry|delay|dlq|stats|parked|reply):)"

StreamKey = Annotated[
    str,
    Text(
        pattern="^[A-Za-z0-9._:{}-]{1,200}$",
        max_length=200,
        what="a stream key (at most 200 of A-Z, a-z, 0-9 and ._:{}-)",
    ),
    Rule(
        cel=f"self.matches('{_ONE_TAG}')",
        message="braces may only form one hash tag that is not empty, such as {team-a.tasks}",
        holds=lambda key: re.fullmatch(_ONE_TAG, key) is not None,
    ),
    Rule(
        cel=f"!self.matches('{_DERIVED}')",
        message="a name such as {team-a.tasks}:retry:coder is reserved for what belongs to a stream",
        holds=lambda key: re.search(_DERIVED, key) is None,
    ),
]


class OnFull(StrEnum):
    """What happens to history when the stream reaches its limits."""

    TRIM_ACKNOWLEDGED = "TrimAcknowledged"
    BACKPRESSURE = "Backpressure"
    TRIM_OLDEST = "TrimOldest"


class StreamDeletion(StrEnum):
    """What deleting an AgentStream does to the data."""

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
    """How long messages are kept, and what happens when there are too many."""

    min_age: Annotated[Duration, at_least("1s")] = parse_duration("24h")
    """Messages are kept at least this long after they were sent, such as 24h; unsettled ones longer."""

    max_length: Annotated[Int, Field(ge=1, le=1_000_000_000)] = 1_000_000
    """How many messages the stream may hold before onFull applies."""

    max_bytes: Annotated[Int, Field(ge=1_048_576, le=9_007_199_254_740_991)] | None = None
    """How much memory the stream may take before onFull applies, in bytes; absent means no limit."""

    on_full: OnFull = OnFull.TRIM_ACKNOWLEDGED
    """What gives way over a limit. TrimAcknowledged: messages that every group has settled go before minAge.
    Backpressure: senders wait. TrimOldest: the oldest messages go, settled or not."""


class SignaturePolicy(StrEnum):
    """What becomes of messages without a valid signature."""

    OFF = "Off"
    WARN = "Warn"
    REQUIRE = "Require"


class Signing(Model):
    """Whether messages are signed, and with which keys."""

    policy: SignaturePolicy
    """Off: nothing is signed or checked. Warn: messages without a valid signature are delivered, counted and
    logged. Require: they become dead letters."""

    rotation: Annotated[Int, Field(ge=0, le=1_000_000)] = 0
    """Raise it to have a new key made; the one before stays valid until the next rotation."""


def _not_lowered(old: AgentStreamSpec, new: AgentStreamSpec) -> bool:
    return old.signing is None or new.signing is None or new.signing.rotation >= old.signing.rotation


class AgentStreamSpec(Model):
    """What is wanted of a stream."""

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
    """The stream's key on the server; {<namespace>.<name>} if absent. Immutable."""

    retention: Retention = Retention()
    """How long messages are kept."""

    producers: Annotated[
        tuple[DnsLabel, ...],
        Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
        AfterValidator(_distinct),
    ] = ()
    """The agents that may add messages."""

    broadcast: Bool = False
    """Whether messages to everyone go here: each group is then expected to acknowledge them."""

    signing: Signing | None = None
    """Whether messages are signed; absent means Off."""

    contracts: Annotated[tuple[ContractSpec, ...], Field(max_length=50), ONE_OF_EACH] = ()
    """What payloads must be. Those of a type that is not named here may be anything."""

    deletion_policy: StreamDeletion = StreamDeletion.RETAIN
    """What deleting this resource does to the stream. DeleteIfEmpty: it goes if nothing is unsettled."""

    management_policy: ManagementPolicy = ManagementPolicy.MANAGED
    """ObserveOnly: the status is kept up to date, and nothing on the server is changed."""


class AgentStream(Resource):
    """A stream."""

    api_version: Literal["agentstream.dev/v1alpha1"] = API_VERSION
    kind: Literal["AgentStream"] = "AgentStream"
    spec: AgentStreamSpec = AgentStreamSpec()
    status: AgentStreamStatus | None = None

    @property
    def stream_key(self) -> str:
        """The stream's key on the server."""
        return self.spec.key or default_stream_key(self.metadata.namespace, self.metadata.name)

    @property
    def signatures(self) -> SignaturePolicy:
        """What becomes of messages without a valid signature."""
        return SignaturePolicy.OFF if self.spec.signing is None else self.spec.signing.policy
