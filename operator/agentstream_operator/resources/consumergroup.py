"""The ConsumerGroup resource: a group of a stream, its retries, and its workload."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from .duration import Duration, at_least, at_most, parse_duration
from .meta import API_VERSION, Resource
from .model import Bool, DnsLabel, Int, Model, Number, Text
from .rules import Rule, immutable
from .status import NO_STATUS, ConsumerGroupStatus
from .template import PodTemplate
from .times import EXISTS, LAST_SEQUENCE, TIME, milliseconds

_ENTRY_ID = "[0-9]{1,19}-[0-9]{1,19}"


def start_id(start_from: str) -> str:
    """Returns the id for XGROUP CREATE; later entries are delivered.

    A time becomes the last possible id before it, so that entries of that very millisecond are included;
    `ValueError` if the time does not exist or is before 1970.
    """
    if start_from == "Beginning":
        return "0"
    if start_from == "End":
        return "$"
    if re.fullmatch(_ENTRY_ID, start_from):
        return start_from
    ms = milliseconds(start_from)
    return f"{ms - 1}-{LAST_SEQUENCE}" if ms else "0"


def _exists(start_from: str) -> str:
    start_id(start_from)
    return start_from


StartFrom = Annotated[
    str,
    Text(
        pattern=f"^(Beginning|End|{_ENTRY_ID}|{TIME})$",
        max_length=64,
        what="Beginning, End, an entry id (1700000000000-0) or a time (2026-01-31T12:00:00Z)",
    ),
    AfterValidator(_exists),
    EXISTS,
]


class DeliverPolicy(StrEnum):
    """Which messages of the stream are delivered to the group."""

    ADDRESSED = "Addressed"
    ALL = "All"


class GroupDeletion(StrEnum):
    """What happens to the group on the server when the ConsumerGroup is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class StreamRef(Model):
    """Reference to an AgentStream of the same namespace."""

    name: DnsLabel
    """Name of the AgentStream."""


class DeploymentRef(Model):
    """Reference to a Deployment of the same namespace."""

    name: DnsLabel
    """Name of the Deployment."""


class BackoffSpec(Model):
    """Delay before the next attempt of a message: initial, then factor times the previous delay."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.initial) <= duration(self.max)",
            message="initial must not exceed max",
            holds=lambda backoff: backoff.initial <= backoff.max,
        ),
    )

    initial: Duration = parse_duration("1s")
    """Delay after the first failed attempt."""

    factor: Annotated[Number, Field(ge=1, le=10)] = 2.0
    """Factor between two delays."""

    max: Duration = parse_duration("5m")
    """Maximum delay."""


class DeliverySpec(Model):
    """Delivery and retries of messages."""

    lease: Annotated[Duration, at_least("2s"), at_most("1h")] = parse_duration("10s")
    """Time after which a message is redelivered unless its consumer renews the lease, which it does while the
    handler runs. A shorter one than the minimum would run out in a short silence of the network."""

    deadline: Annotated[Duration, at_least("1s"), at_most("168h")] | None = None
    """Maximum duration of an attempt; then the handler is cancelled, and the attempt has failed."""

    max_deliveries: Annotated[Int, Field(ge=1, le=100)] = 5
    """Maximum number of attempts before a message becomes a dead letter. With 1, a message whose process died
    while it ran beside others has another one, alone."""

    backoff: BackoffSpec = BackoffSpec()
    """Delays between attempts."""


class DeadLetterSpec(Model):
    """Dead letters of the group."""

    enabled: Bool = True
    """Whether messages become dead letters; if not, they are retried forever, at the maximum delay."""

    min_age: Annotated[Duration, at_least("1s")] = parse_duration("168h")
    """Minimum time for which dead letters are kept."""

    max_length: Annotated[Int, Field(ge=1, le=1_000_000_000)] = 100_000
    """Number of dead letters above which DeadLettering warns; nothing is removed."""


class ScalingMode(StrEnum):
    """Controller of the replicas."""

    DIRECT = "Direct"
    HPA = "HPA"


class Autoscaling(Model):
    """Autoscaling of the consumers by the backlog."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            message="minReplicas must not exceed maxReplicas",
            holds=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
        ),
        Rule(
            cel="!(self.mode == 'HPA' && has(self.targetAge))",
            message="targetAge needs mode Direct: a HorizontalPodAutoscaler follows targetBacklog alone",
            holds=lambda scaling: scaling.mode is not ScalingMode.HPA or scaling.target_age is None,
        ),
    )

    mode: ScalingMode = ScalingMode.DIRECT
    """Direct: the operator sets the replicas. HPA: a HorizontalPodAutoscaler does, but for zero."""

    min_replicas: Annotated[Int, Field(ge=0, le=1_000)] = 0
    """Minimum replicas; with 0, the first message scales the group up from zero."""

    max_replicas: Annotated[Int, Field(ge=1, le=1_000)] = 10
    """Maximum replicas."""

    target_backlog: Annotated[Int, Field(ge=1, le=1_000_000)] = 100
    """Target number of unsettled messages per replica."""

    target_age: Annotated[Duration, at_least("1s")] | None = None
    """Target time for which a message waits at most; scales by the measured rate per replica."""

    scale_down_after: Duration = parse_duration("30s")
    """Time for which fewer replicas must have been enough before the group is scaled down."""


class ConsumerGroupSpec(Model):
    """Desired state of a group."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("streamRef"),
        immutable("group"),
        immutable("agent"),
        immutable("startFrom"),
        Rule(
            cel="!(has(self.replicas) && has(self.autoscaling))",
            message="replicas and autoscaling exclude each other",
            holds=lambda spec: spec.replicas is None or spec.autoscaling is None,
        ),
        Rule(
            cel="!(has(self.template) && has(self.deploymentRef))",
            message="template and deploymentRef exclude each other",
            holds=lambda spec: spec.template is None or spec.deployment_ref is None,
        ),
        Rule(
            cel=(
                "has(self.template) || has(self.deploymentRef)"
                " || !(has(self.replicas) || has(self.autoscaling))"
            ),
            message="replicas and autoscaling need a template or deploymentRef",
            holds=lambda spec: (
                spec.template is not None
                or spec.deployment_ref is not None
                or (spec.replicas is None and spec.autoscaling is None)
            ),
        ),
    )

    stream_ref: StreamRef
    """AgentStream to consume. Immutable."""

    group: DnsLabel | None = None
    """Name of the group on the server; default: name of this resource. Immutable."""

    agent: DnsLabel | None = None
    """Agent whose credentials the consumers use; default: name of this resource. Immutable."""

    start_from: StartFrom = "End"
    """Start of a new group: Beginning, End, after an entry id, or at an RFC 3339 time. Immutable."""

    deliver: DeliverPolicy = DeliverPolicy.ADDRESSED
    """Addressed: messages to this agent and broadcasts. All: every message."""

    delivery: DeliverySpec = DeliverySpec()
    """Delivery and retries of messages."""

    dead_letter: DeadLetterSpec = DeadLetterSpec()
    """Dead letters of the group."""

    template: PodTemplate | None = None
    """Pod template of the consumers; absent if the agent is deployed otherwise."""

    deployment_ref: DeploymentRef | None = None
    """Existing Deployment of the consumers, instead of a template; the operator changes only its replicas."""

    replicas: Annotated[Int, Field(ge=0, le=1_000)] | None = None
    """Number of replicas; default 1. Must be absent with autoscaling."""

    autoscaling: Autoscaling | None = None
    """Autoscaling by the backlog."""

    suspend: Bool = False
    """Scales the consumers to zero; the group keeps its position."""

    deletion_policy: GroupDeletion = GroupDeletion.RETAIN
    """What happens to the group when this resource is deleted. Retain: a new resource resumes there."""


class ConsumerGroup(Resource):
    """A consumer group."""

    api_version: Literal["agentstream.dev/v1alpha1"] = API_VERSION
    kind: Literal["ConsumerGroup"] = "ConsumerGroup"
    spec: ConsumerGroupSpec
    status: Annotated[ConsumerGroupStatus | None, NO_STATUS] = None

    @property
    def group_name(self) -> str:
        """Name of the group on the server."""
        return self.spec.group or self.metadata.name

    @property
    def agent_name(self) -> str:
        """Agent whose credentials the consumers use."""
        return self.spec.agent or self.metadata.name

    @property
    def start_id(self) -> str:
        """Entry id to create the group with; later entries are delivered."""
        return start_id(self.spec.start_from)

    @property
    def has_workload(self) -> bool:
        """Whether the group has a template or a deploymentRef."""
        return self.spec.template is not None or self.spec.deployment_ref is not None

    @property
    def leaves_replicas(self) -> bool:
        """Whether a HorizontalPodAutoscaler sets the replicas above zero."""
        scaling = self.spec.autoscaling
        return scaling is not None and scaling.mode is ScalingMode.HPA

    @property
    def fixed_replicas(self) -> int:
        """Replicas without autoscaling."""
        return 1 if self.spec.replicas is None else self.spec.replicas
