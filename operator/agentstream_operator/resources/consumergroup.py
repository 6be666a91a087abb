"""The ConsumerGroup resource: who reads a stream, how failures are retried, and what runs the consumers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .duration import Duration, at_least, at_most, parse_duration
from .meta import API_VERSION, Resource
from .model import Bool, DnsLabel, Int, Model, Number
from .rules import Rule, immutable
from .start import StartFrom, start_id
from .status import ConsumerGroupStatus
from .template import PodTemplate


class DeliverPolicy(StrEnum):
    """Which messages of the stream the group handles."""

    ADDRESSED = "Addressed"
    ALL = "All"


class GroupDeletion(StrEnum):
    """What deleting a ConsumerGroup does to the group on the server."""

    RETAIN = "Retain"
    DELETE = "Delete"


class StreamRef(Model):
    """Names an AgentStream of the same namespace."""

    name: DnsLabel
    """Name of the AgentStream."""


class DeploymentRef(Model):
    """Names a Deployment of the same namespace."""

    name: DnsLabel
    """Name of the Deployment."""


class Backoff(Model):
    """How long a message waits before its next attempt: initial, then factor times the wait before."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.initial) <= duration(self.max)",
            message="initial must not exceed max",
            holds=lambda backoff: backoff.initial <= backoff.max,
        ),
    )

    initial: Duration = parse_duration("1s")
    """Wait after the first failed attempt."""

    factor: Annotated[Number, Field(ge=1, le=10)] = 2.0
    """How much longer each further wait is."""

    max: Duration = parse_duration("5m")
    """The longest wait."""


class DeliverySpec(Model):
    """How a message is handed out, and how often."""

    lease: Annotated[Duration, at_least("1s"), at_most("1h")] = parse_duration("10s")
    """How long a consumer holds a message without renewing. Consumers renew while their handler runs."""

    deadline: Annotated[Duration, at_least("1s"), at_most("168h")] | None = None
    """How long one attempt may take; then its handler is cancelled, and the attempt counts as failed."""

    max_deliveries: Annotated[Int, Field(ge=1, le=100)] = 5
    """How many attempts a message gets before it becomes a dead letter."""

    backoff: Backoff = Backoff()
    """How long a message waits between attempts."""


class DeadLetterSpec(Model):
    """What becomes of messages that are given up."""

    enabled: Bool = True
    """Whether messages are ever given up; if not, they are retried for ever, at the longest backoff."""

    min_age: Annotated[Duration, at_least("1s")] = parse_duration("168h")
    """Dead letters are kept at least this long."""

    max_length: Annotated[Int, Field(ge=1, le=1_000_000_000)] = 100_000
    """From how many dead letters on DeadLettering warns. Nothing is removed for it."""


class ScalingMode(StrEnum):
    """Who decides how many pods there are."""

    DIRECT = "Direct"
    HPA = "HPA"


class Autoscaling(Model):
    """How the number of consumers follows the backlog."""

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
    """Direct: the operator. HPA: a HorizontalPodAutoscaler that it makes; to and from zero, the operator."""

    min_replicas: Annotated[Int, Field(ge=0, le=1_000)] = 0
    """The fewest pods; with 0 the first message starts one."""

    max_replicas: Annotated[Int, Field(ge=1, le=1_000)] = 10
    """The most pods."""

    target_backlog: Annotated[Int, Field(ge=1, le=1_000_000)] = 100
    """How many waiting and running messages one pod should have."""

    target_age: Annotated[Duration, at_least("1s")] | None = None
    """How long a message may wait; then there are as many pods as that takes at the speed that they show."""

    scale_down_after: Duration = parse_duration("30s")
    """How long fewer pods must have been enough before there are fewer."""


class ConsumerGroupSpec(Model):
    """What is wanted of a group."""

    rules: ClassVar[tuple[Rule, ...]] = (
        immutable("streamRef"),
        immutable("group"),
        immutable("agent"),
        immutable("startFrom"),
        Rule(
            cel="!(has(self.replicas) && has(self.autoscaling))",
            message="replicas must be absent where autoscaling is set",
            holds=lambda spec: spec.replicas is None or spec.autoscaling is None,
        ),
        Rule(
            cel="!(has(self.template) && has(self.deploymentRef))",
            message="template and deploymentRef exclude each other: consumers are made, or are there",
            holds=lambda spec: spec.template is None or spec.deployment_ref is None,
        ),
        Rule(
            cel=(
                "has(self.template) || has(self.deploymentRef)"
                " || !(has(self.replicas) || has(self.autoscaling))"
            ),
            message=(
                "replicas and autoscaling need a template or deploymentRef:"
                " without one there is nothing to scale"
            ),
            holds=lambda spec: (
                spec.template is not None
                or spec.deployment_ref is not None
                or (spec.replicas is None and spec.autoscaling is None)
            ),
        ),
    )

    stream_ref: StreamRef
    """The stream to read. Immutable."""

    group: DnsLabel | None = None
    """Name of the group on the server; this resource's name if absent. Immutable."""

    agent: DnsLabel | None = None
    """The agent whose identity the consumers have; this resource's name if absent. Immutable."""

    start_from: StartFrom = "End"
    """Where a new group starts: Beginning, End, after an entry id, or at an RFC 3339 time. Immutable."""

    deliver: DeliverPolicy = DeliverPolicy.ADDRESSED
    """Addressed: messages to this agent and to everyone. All: every message."""

    delivery: DeliverySpec = DeliverySpec()
    """How messages are handed out and retried."""

    dead_letter: DeadLetterSpec = DeadLetterSpec()
    """What becomes of messages that are given up."""

    template: PodTemplate | None = None
    """The pods that consume; absent where the agent runs elsewhere."""

    deployment_ref: DeploymentRef | None = None
    """A Deployment that exists and consumes, instead of a template: only its replicas are changed."""

    replicas: Annotated[Int, Field(ge=0, le=1_000)] | None = None
    """How many pods; 1 if absent. Must be absent with autoscaling."""

    autoscaling: Autoscaling | None = None
    """Lets the number of pods follow the backlog."""

    suspend: Bool = False
    """Stops all consumers of the template; the group keeps its place."""

    deletion_policy: GroupDeletion = GroupDeletion.RETAIN
    """What deleting this resource does to the group. Retain: a resource created anew resumes where it was."""


class ConsumerGroup(Resource):
    """A consumer group."""

    api_version: Literal["agentstream.dev/v1alpha1"] = API_VERSION
    kind: Literal["ConsumerGroup"] = "ConsumerGroup"
    spec: ConsumerGroupSpec
    status: ConsumerGroupStatus | None = None

    @property
    def group_name(self) -> str:
        """The group's name on the server."""
        return self.spec.group or self.metadata.name

    @property
    def agent_name(self) -> str:
        """The agent whose identity the consumers have."""
        return self.spec.agent or self.metadata.name

    @property
    def start_id(self) -> str:
        """The id to create the group with; what comes after it is delivered."""
        return start_id(self.spec.start_from)

    @property
    def has_workload(self) -> bool:
        """Whether it says what runs its consumers."""
        return self.spec.template is not None or self.spec.deployment_ref is not None

    @property
    def leaves_replicas(self) -> bool:
        """Whether an autoscaler of Kubernetes is to decide how many pods there are, but for none."""
        scaling = self.spec.autoscaling
        return scaling is not None and scaling.mode is ScalingMode.HPA

    @property
    def fixed_replicas(self) -> int:
        """How many pods run where the backlog does not decide it."""
        return 1 if self.spec.replicas is None else self.spec.replicas
