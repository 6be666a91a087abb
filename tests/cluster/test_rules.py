"""Every CEL rule of the CRDs on a real API server, and that the tests' own reading of the CRDs is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings

from cluster.submitting import crds, create, refusals, refused_changes, schema, submitted
from support.apiserver import ApiServer
from support.kubectl import Kubectl
from unit.resources import api_server as emulated
from unit.resources.manifests import (
    a_group,
    a_replay,
    a_stream,
    a_template,
    groups,
    mutated,
    replays,
    streams,
)
from unit.resources.test_schema import ACCEPTED, IMMUTABLE, REFUSED

TEMPLATE = a_template()
CONTRACTS = [{"type": "event", "version": version, "schema": {"type": "object"}} for version in range(1, 50)]
LONGEST = "must be at most 87600h"
SHORTEST = "must be at least 1s"


@dataclass(frozen=True)
class Rule:
    """A rule of a CRD.

    Attributes:
        place: where it stands, beginning with the kind.
        message: what it says to who breaks it.
        taken: a manifest that just keeps it.
        refused: one that breaks it.
    """

    place: str
    message: str
    taken: dict[str, Any]
    refused: dict[str, Any]


DEAD = {"from": {"source": "DeadLetters"}}


def a_range(since: str, until: str) -> dict[str, Any]:
    """A replay of these entries."""
    return a_replay(**{"from": {"source": "Stream", "since": since, "until": until}})


RULES = [
    Rule(
        "AgentStream.spec.key",
        "braces may only form one non-empty hash tag, such as {team-a.tasks}",
        a_stream(key="a:{b}:c"),
        a_stream(key="{a}{b}"),
    ),
    Rule(
        "AgentStream.spec.key",
        "a suffix such as :retry:coder is reserved for keys derived from a stream",
        a_stream(key="{team-a.tasks}:retries:coder"),
        a_stream(key="{team-a.tasks}:retry:coder"),
    ),
    Rule(
        "AgentStream.spec.key",
        "a suffix such as :retry:coder is reserved for keys derived from a stream",
        a_stream(key="{team-a.tasks}:once-more"),
        a_stream(key="{team-a.tasks}:once"),
    ),
    Rule(
        "AgentStream.spec.key",
        "keys that begin with agentstream: or {agentstream-probe} are reserved for the operator",
        a_stream(key="agentstream"),
        a_stream(key="agentstream:routes"),
    ),
    Rule(
        "AgentStream.spec.retention.minAge",
        LONGEST,
        a_stream(retention={"minAge": "87600h"}),
        a_stream(retention={"minAge": "87600h1ms"}),
    ),
    Rule(
        "AgentStream.spec.retention.minAge",
        SHORTEST,
        a_stream(retention={"minAge": "1000ms"}),
        a_stream(retention={"minAge": "999ms"}),
    ),
    Rule(
        "AgentStream.spec.contracts",
        "only one contract per type and version is allowed",
        a_stream(contracts=[*CONTRACTS, {**CONTRACTS[0], "type": "task_request"}]),
        a_stream(contracts=[*CONTRACTS, {**CONTRACTS[0], "version": 49}]),
    ),
    Rule(
        "ConsumerGroup.spec.startFrom",
        "must be an existing time since 1970",
        a_group(startFrom="1970-01-01T00:00:00Z"),
        a_group(startFrom="1970-01-01T00:00:00+00:01"),
    ),
    Rule(
        "ConsumerGroup.spec.startFrom",
        "must be an existing time since 1970",
        a_group(startFrom="2024-02-29T00:00:00Z"),
        a_group(startFrom="2023-02-29T00:00:00Z"),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.lease",
        LONGEST,
        a_group(delivery={"lease": "1h"}),
        a_group(delivery={"lease": "87600h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.lease",
        "must be at least 2s",
        a_group(delivery={"lease": "2s"}),
        a_group(delivery={"lease": "1999ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.lease",
        "must be at most 1h",
        a_group(delivery={"lease": "60m"}),
        a_group(delivery={"lease": "1h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.deadline",
        LONGEST,
        a_group(delivery={"deadline": "168h"}),
        a_group(delivery={"deadline": "87600h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.deadline",
        SHORTEST,
        a_group(delivery={"deadline": "1s"}),
        a_group(delivery={"deadline": "999ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.deadline",
        "must be at most 168h",
        a_group(delivery={"deadline": "168h"}),
        a_group(delivery={"deadline": "168h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.backoff",
        "initial must not exceed max",
        a_group(delivery={"backoff": {"initial": "1m", "max": "60s"}}),
        a_group(delivery={"backoff": {"initial": "60001ms", "max": "1m"}}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.backoff.initial",
        LONGEST,
        a_group(delivery={"backoff": {"initial": "87600h", "max": "87600h"}}),
        a_group(delivery={"backoff": {"initial": "87600h1ms", "max": "87600h"}}),
    ),
    Rule(
        "ConsumerGroup.spec.delivery.backoff.max",
        LONGEST,
        a_group(delivery={"backoff": {"max": "87600h"}}),
        a_group(delivery={"backoff": {"max": "87600h1ms"}}),
    ),
    Rule(
        "ConsumerGroup.spec.deadLetter.minAge",
        LONGEST,
        a_group(deadLetter={"minAge": "87600h"}),
        a_group(deadLetter={"minAge": "87600h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.deadLetter.minAge",
        SHORTEST,
        a_group(deadLetter={"minAge": "1s"}),
        a_group(deadLetter={"minAge": "0s"}),
    ),
    Rule(
        "ConsumerGroup.spec.autoscaling",
        "minReplicas must not exceed maxReplicas",
        a_group(template=TEMPLATE, autoscaling={"minReplicas": 10}),
        a_group(template=TEMPLATE, autoscaling={"minReplicas": 11}),
    ),
    Rule(
        "ConsumerGroup.spec.autoscaling",
        "targetAge needs mode Direct: a HorizontalPodAutoscaler follows targetBacklog alone",
        a_group(template=TEMPLATE, autoscaling={"mode": "HPA"}),
        a_group(template=TEMPLATE, autoscaling={"mode": "HPA", "targetAge": "1m"}),
    ),
    Rule(
        "ConsumerGroup.spec.autoscaling.targetAge",
        LONGEST,
        a_group(template=TEMPLATE, autoscaling={"targetAge": "87600h"}),
        a_group(template=TEMPLATE, autoscaling={"targetAge": "87600h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.autoscaling.targetAge",
        SHORTEST,
        a_group(template=TEMPLATE, autoscaling={"targetAge": "1s"}),
        a_group(template=TEMPLATE, autoscaling={"targetAge": "999ms"}),
    ),
    Rule(
        "ConsumerGroup.spec.autoscaling.scaleDownAfter",
        LONGEST,
        a_group(template=TEMPLATE, autoscaling={"scaleDownAfter": "87600h"}),
        a_group(template=TEMPLATE, autoscaling={"scaleDownAfter": "87600h1ms"}),
    ),
    Rule(
        "ConsumerGroup.spec",
        "replicas and autoscaling exclude each other",
        a_group(template=TEMPLATE, autoscaling={}),
        a_group(template=TEMPLATE, autoscaling={}, replicas=1),
    ),
    Rule(
        "ConsumerGroup.spec",
        "replicas and autoscaling need a template or deploymentRef",
        a_group(template=TEMPLATE, replicas=0),
        a_group(replicas=0),
    ),
    Rule(
        "ConsumerGroup.spec",
        "replicas and autoscaling need a template or deploymentRef",
        a_group(),
        a_group(autoscaling={}),
    ),
    Rule(
        "ConsumerGroup.spec",
        "template and deploymentRef exclude each other",
        a_group(deploymentRef={"name": "coder"}, replicas=1),
        a_group(deploymentRef={"name": "coder"}, template=TEMPLATE),
    ),
    Rule(
        "StreamReplay.spec.from",
        "since must not be after until: exchange the two",
        a_range("9-5", "10-4"),
        a_range("10-0", "9-9"),
    ),
    Rule(
        "StreamReplay.spec.from",
        "since must not be after until: exchange the two",
        a_range("10-5", "10-5"),
        a_range("10-10", "10-9"),
    ),
    Rule(
        "StreamReplay.spec.from",
        "since must not be after until: exchange the two",
        a_range("2024-02-29T12:00:00.000000001Z", "2024-02-29T13:00:00.000000001+01:00"),
        a_range("2024-02-29T12:00:00.000000002Z", "2024-02-29T13:00:00.000000001+01:00"),
    ),
    Rule(
        "StreamReplay.spec.from.since",
        "must be an existing time since 1970",
        a_replay(**{"from": {"source": "Stream", "since": "1970-01-01T00:00:00Z"}}),
        a_replay(**{"from": {"source": "Stream", "since": "2023-02-29T00:00:00Z"}}),
    ),
    Rule(
        "StreamReplay.spec.from.until",
        "must be an existing time since 1970",
        a_replay(**{"from": {"source": "Stream", "until": "1970-01-01T00:00:00Z"}}),
        a_replay(**{"from": {"source": "Stream", "until": "1970-01-01T00:00:00+00:01"}}),
    ),
    Rule(
        "StreamReplay.spec",
        "Drop removes dead letters only: set from.source to DeadLetters, or action to Redeliver",
        a_replay(**DEAD, action="Drop", select={"ids": ["1-0"] * 1_000}),
        a_replay(action="Drop", select={"ids": ["1-0"]}),
    ),
    Rule(
        "StreamReplay.spec",
        "Drop needs a select: say which dead letters to remove, such as by ids or reasons",
        a_replay(**DEAD, action="Drop", select={"correlation": "a"}),
        a_replay(**DEAD, action="Drop", select={}),
    ),
    Rule(
        "StreamReplay.spec",
        "only dead letters have reasons: set from.source to DeadLetters, or leave reasons out",
        a_replay(**DEAD, select={"reasons": ["MaxDeliveries"]}),
        a_replay(select={"reasons": ["MaxDeliveries"]}),
    ),
    Rule(
        "StreamReplay.spec",
        "expired is for Redeliver: leave it out, since Drop removes expired dead letters, too",
        a_replay(**DEAD, expired="Deliver"),
        a_replay(**DEAD, action="Drop", select={"types": ["event"]}, expired="Deliver"),
    ),
]


@dataclass(frozen=True)
class Change:
    """A field that stays as it was when the resource was created.

    Attributes:
        kind: of the resource.
        field: of its spec.
        manifests: two that differ in it, and one without it if it may be absent.
    """

    kind: str
    field: str
    manifests: tuple[dict[str, Any], ...]

    @property
    def message(self) -> str:
        return f"{self.field} is immutable: create another resource instead"


CHANGES = [
    Change("AgentStream", "key", (a_stream(key="a"), a_stream(key="b"), a_stream())),
    Change("ConsumerGroup", "streamRef", (a_group(), a_group(streamRef={"name": "others"}))),
    Change("ConsumerGroup", "group", (a_group(group="a"), a_group(group="b"), a_group())),
    Change("ConsumerGroup", "agent", (a_group(agent="a"), a_group(agent="b"), a_group())),
    Change("ConsumerGroup", "startFrom", (a_group(startFrom="0-1"), a_group(startFrom="0-2"), a_group())),
    Change("StreamReplay", "groupRef", (a_replay(), a_replay(groupRef={"name": "others"}))),
    Change("StreamReplay", "from", (a_range("1-0", "2-0"), a_range("1-0", "3-0"), a_replay())),
    Change(
        "StreamReplay",
        "select",
        (a_replay(select={"ids": ["1-0"] * 999}), a_replay(select={"ids": ["1-0"] * 1_000}), a_replay()),
    ),
    Change(
        "StreamReplay",
        "action",
        (a_replay(**DEAD, select={"ids": ["1-0"]}, action="Drop"), a_replay(**DEAD, select={"ids": ["1-0"]})),
    ),
    Change("StreamReplay", "limit", (a_replay(limit=1), a_replay(limit=2), a_replay())),
    Change("StreamReplay", "expired", (a_replay(expired="Deliver"), a_replay())),
    Change("StreamReplay", "dryRun", (a_replay(dryRun=True), a_replay())),
    Change("StreamReplay", "reason", (a_replay(reason="a"), a_replay(reason="b"), a_replay())),
]


RAISED = "signing.rotation can only be raised"


def declared() -> Iterator[tuple[str, str]]:
    """Place and message of every rule in the CRDs."""
    for kind in crds():
        for path, node in emulated.nodes(schema(kind)):
            for rule in node.get("x-kubernetes-validations", ()):
                yield f"{kind}{path}", rule["message"]


def test_every_rule_of_the_crds_has_a_case() -> None:
    known = {(rule.place, rule.message) for rule in RULES}
    known |= {(f"{change.kind}.spec", change.message) for change in CHANGES}
    known.add(("AgentStream.spec", RAISED))
    assert set(declared()) == known


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.place}: {rule.message}")
def test_a_rule_takes_what_keeps_it_and_refuses_what_breaks_it(api_server: ApiServer, rule: Rule) -> None:
    assert refusals(api_server, rule.taken) == []
    field = rule.place.partition(".")[2]
    found = refusals(api_server, rule.refused)
    assert [text for text in found if text.startswith(f"{field}: ") and rule.message in text], found


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.kind}.{change.field}")
def test_a_field_stays_as_it_was_created(api_server: ApiServer, namespace: str, change: Change) -> None:
    for number, manifest in enumerate(change.manifests):
        metadata = {"name": f"a{number}"}
        stored = create(api_server, {**manifest, "metadata": metadata}, namespace)
        for other in change.manifests:
            found = refused_changes(api_server, stored, {**other, "metadata": metadata})
            if other is manifest:
                assert found == []
            else:
                assert found == [f"spec.{change.field}: Forbidden: {change.message}"]


def test_keys_are_not_rotated_backwards(api_server: ApiServer, namespace: str) -> None:
    def signed(rotation: int) -> dict[str, Any]:
        return a_stream(signing={"policy": "Require", "rotation": rotation})

    stored = create(api_server, signed(1), namespace)
    assert refused_changes(api_server, stored, signed(2)) == []
    assert refused_changes(api_server, stored, signed(0)) == [f"spec.signing: Forbidden: {RAISED}"]


def test_everything_else_may_change(api_server: ApiServer, namespace: str) -> None:
    stored = create(api_server, a_group(template=a_template(), replicas=1), namespace)
    new = a_group(template=a_template(image="coder:2"), autoscaling={}, suspend=True, deliver="All")
    assert refused_changes(api_server, stored, new) == []


def test_the_pace_of_a_replay_may_change(api_server: ApiServer, namespace: str) -> None:
    stored = create(api_server, a_replay(), namespace)
    new = a_replay(suspend=True, rate=7, window=7, ttlSecondsAfterFinished=7)
    assert refused_changes(api_server, stored, new) == []


def test_kubectl_says_which_field_is_wrong_and_why(kubectl: Kubectl) -> None:
    kubectl.apply(a_stream(key="a"))
    said = kubectl.fails("apply", "-f", "-", manifest=a_stream(key="b"))
    assert said == f'The AgentStream "tasks" is invalid: spec.key: Forbidden: {CHANGES[0].message}\n'
    said = kubectl.fails("apply", "-f", "-", manifest=a_group(replicas=1, delivery={"maxDeliveries": 0}))
    assert 'The ConsumerGroup "coder" is invalid:' in said
    assert "spec.delivery.maxDeliveries in body should be greater than or equal to 1" in said
    said = kubectl.fails("apply", "-f", "-", manifest=a_group(template=TEMPLATE, replicas=1, autoscaling={}))
    assert "spec: Invalid value: replicas and autoscaling exclude each other" in said
    said = kubectl.fails("apply", "--validate=strict", "-f", "-", manifest=a_stream("new", minAge="1h"))
    assert 'strict decoding error: unknown field "spec.minAge"' in said


def test_kubectl_explains_every_field(kubectl: Kubectl) -> None:
    said = kubectl("explain", "agentstreams.spec.retention")
    for name, field in schema("AgentStream")["properties"]["spec"]["properties"]["retention"][
        "properties"
    ].items():
        assert name in said
        assert field["description"].split()[0] in said
    said = kubectl("explain", "cgroup", "--recursive")
    for _, node in emulated.nodes(schema("ConsumerGroup")):
        for name in node.get("properties", {}):
            assert name in said
    said = kubectl("explain", "consumergroups.spec.template.spec.containers.command")
    assert "Entry point; that of the image if absent" in " ".join(said.split())


# the emulation, by which models and schema are compared in unit tests


def as_kubectl_sends_it(value: Any) -> Any:
    """A manifest as `kubectl apply` sends it: fields without a value are left out."""
    if isinstance(value, dict):
        return {name: as_kubectl_sends_it(item) for name, item in value.items() if item is not None}
    return [as_kubectl_sends_it(item) for item in value] if isinstance(value, list) else value


def assert_agreement(server: ApiServer, manifest: dict[str, Any]) -> None:
    real, answer = submitted(server, as_kubectl_sends_it(manifest))
    expected = emulated.refusals(manifest)
    assert bool(real) == bool(expected), (real, expected)
    if not real:
        assert answer["spec"] == emulated.stored(manifest)["spec"]


CASES = {f"taken: {k}": v for k, v in ACCEPTED.items()} | {f"refused: {k}": v for k, v in REFUSED.items()}


@pytest.mark.parametrize("manifest", CASES.values(), ids=CASES)
def test_the_emulation_agrees_with_the_server(api_server: ApiServer, manifest: dict[str, Any]) -> None:
    assert_agreement(api_server, manifest)


@pytest.mark.parametrize("case", IMMUTABLE, ids=lambda case: case[1])
def test_the_emulation_agrees_about_changes(api_server: ApiServer, namespace: str, case: Any) -> None:
    make, field, one, other = case
    old, new = make(**{field: one}), make(**{field: other})
    stored = create(api_server, old, namespace)
    (real,) = refused_changes(api_server, stored, new)
    (expected,) = emulated.refusals(new, old)
    assert real == f"spec.{field}: Forbidden: {expected}"


@given(manifest=streams | groups | replays | mutated(streams) | mutated(groups) | mutated(replays))
@settings(max_examples=400)
def test_the_emulation_agrees_about_anything(api_server: ApiServer, manifest: dict[str, Any]) -> None:
    assert_agreement(api_server, manifest)
