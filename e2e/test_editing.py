"""Every field that may be edited, edited on a live resource: each edit takes effect."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from harness.chart import Installation
from harness.kubectl import Kubectl, condition, in_effect
from harness.manifests import a_group, a_replay, a_stream, a_template
from harness.redis import Redis
from harness.shell import ROOT
from harness.waiting import until

PER_NODE = 1000
"""Entries that the server keeps together: fewer are not trimmed."""

MESSAGE = {
    "v": 1,
    "id": "7ec428e0-0c1d-4f5a-9b57-0123456789ab",
    "from": "planner",
    "to": "again",
    "type": "event",
    "payload": {},
    "timestamp": 0,
}


@dataclass(frozen=True)
class Place:
    """A namespace with resources to edit, and the server."""

    kubectl: Kubectl
    redis: Redis

    def key(self, stream: str) -> str:
        return f"{{{self.kubectl.namespace}.{stream}}}"

    def route(self, agent: str) -> dict[str, Any]:
        """The first stream that an agent consumes, as it is told."""
        (text,) = self.redis("HGET", f"agentstream:agentstream:{self.kubectl.namespace}:routes", agent)
        consumes: dict[str, Any] = json.loads(text)["consumes"][0]
        return consumes

    def gate(self, stream: str) -> int:
        """The length from which on adding is refused; what groups have settled meanwhile comes on top."""
        return int(self.redis("GET", f"{self.key(stream)}:gate")[0].split()[0])

    def length(self, key: str) -> int:
        return int(self.redis("XLEN", key)[0])

    def fill(self, key: str, count: int, payload: str = "{}", age: int = 0) -> None:
        """Adds entries to a stream, as many seconds old as is said."""
        self.redis("-r", str(count), "XADD", key, f"{int(time.time() - age) * 1000}-*", "m", payload)

    def replicas(self, deployment: str) -> int:
        found: int = self.kubectl.get("deployment", deployment)["spec"]["replicas"]
        return found

    def autoscaler(self, deployment: str) -> bool:
        """Whether a HorizontalPodAutoscaler has a say in it."""
        return self.kubectl.find("hpa", deployment) is not None

    def container(self, deployment: str) -> dict[str, Any]:
        spec = self.kubectl.get("deployment", deployment)["spec"]["template"]["spec"]
        found: dict[str, Any] = spec["containers"][0]
        return found

    def replay(self) -> dict[str, Any]:
        """How far the replay has come."""
        found: dict[str, Any] = self.kubectl.get("streamreplay", "slow").get("status", {})
        return found

    def condition(self, what: str, name: str) -> Any:
        return condition(self.kubectl.get(*what.split("/")), name)


def idle(**more: Any) -> dict[str, Any]:
    """The template of pods that do nothing, and end when they are told to."""
    template = a_template("sh", "-c", "trap exit TERM; sleep infinity & wait", **more)
    # without the SDK nobody answers probes
    template["spec"]["containers"][0]["env"] = [{"name": "AGENTSTREAM_HEALTH_PORT", "value": ""}]
    return template


def a_deployment(name: str) -> dict[str, Any]:
    """A Deployment that is not the operator's."""
    labels = {"app": name}
    spec = {"selector": {"matchLabels": labels}, "template": {**idle(), "metadata": {"labels": labels}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def place(cluster: Any) -> Iterator[Place]:
    installation = Installation(cluster)
    installation.ensure()
    # what an earlier run left on the server belongs to another namespace
    namespace = f"e2e-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", namespace)
    kubectl = cluster.kubectl.within(namespace)
    made = Place(kubectl, installation.redis)
    streams = ("tasks", "settled", "aged", "large", "heaped", "watched", "replayed")
    kubectl.apply(*(a_stream(name) for name in streams), a_deployment("theirs"), a_deployment("others"))
    kubectl.ready("agentstreams", "--all")
    made.fill(made.key("aged"), 2 * PER_NODE, age=600)
    made.fill(f"{made.key('tasks')}:dlq:coder", 2 * PER_NODE, age=600)
    made.fill(made.key("large"), 2 * PER_NODE, "x" * 1024)
    made.fill(made.key("replayed"), PER_NODE, json.dumps(MESSAGE))
    for name in ("settled", "tasks", "aged"):
        made.fill(made.key(name), 1)
    kubectl.apply(
        # what was there before these count from is settled for them
        a_group("settled", "settled"),
        a_group("large", "large"),
        a_group("again", "replayed"),
        a_group("coder", "tasks"),
        a_group("fixed", "tasks", template=idle()),
        a_group("resting", "tasks", template=idle()),
        a_group("guest", "tasks", deploymentRef={"name": "theirs"}, replicas=0),
        a_group("scaled", "heaped", template=idle(), autoscaling={"maxReplicas": 3, "targetBacklog": 5}),
    )
    kubectl.ready("consumergroups", "--all")
    made.fill(made.key("heaped"), 10)
    kubectl.apply(a_replay("slow", "again", rate=1, window=1, suspend=True))
    yield made
    cluster.kubectl("delete", "namespace", namespace, "--timeout=120s", timeout=130)


@dataclass(frozen=True)
class Edit:
    """A field, a new value, and how it is seen that it counts."""

    resource: str
    field: str
    value: Any
    effect: Callable[[Place], bool]
    removed: str = ""

    def __str__(self) -> str:
        return f"{self.resource}:{self.field}"

    def change(self) -> dict[str, Any]:
        change: Any = self.value
        for part in reversed(self.field.split(".")):
            change = {part: change}
        return {"spec": change | ({self.removed: None} if self.removed else {})}


def _route(agent: str, field: str, value: Any) -> Callable[[Place], bool]:
    return lambda place: place.route(agent).get(field) == value


EDITS = (
    Edit("agentstream/aged", "retention.minAge", "1m", lambda p: p.length(p.key("aged")) < PER_NODE),
    Edit("agentstream/tasks", "retention.maxLength", 7, lambda p: p.gate("tasks") == 7 + 1),
    Edit(
        "agentstream/large",
        "retention.maxBytes",
        1 << 20,
        lambda p: p.length(p.key("large")) < 1.2 * PER_NODE,
    ),
    Edit(
        "agentstream/settled",
        "retention.onFull",
        "Backpressure",
        # before, the settled message did not count
        lambda p: p.gate("settled") == 1_000_000,
    ),
    Edit(
        "agentstream/tasks",
        "producers",
        ["planner"],
        lambda p: (
            f"agentstream.{p.kubectl.namespace}.planner" in p.redis.users()
            and p.kubectl.find("secret", "agentstream-planner") is not None
        ),
    ),
    Edit("agentstream/tasks", "broadcast", True, _route("coder", "broadcast", True)),
    Edit("agentstream/tasks", "maxMessageBytes", 4096, _route("coder", "max_message_bytes", 4096)),
    Edit(
        "agentstream/watched",
        "managementPolicy",
        "ObserveOnly",
        lambda p: p.condition("agentstream/watched", "Synced")["reason"] == "ObserveOnly",
    ),
    Edit(
        "agentstream/tasks",
        "contracts",
        [{"type": "event", "schema": {"type": "object"}}],
        lambda p: bool(p.route("coder").get("contracts")),
    ),
    Edit("consumergroup/coder", "deliver", "All", _route("coder", "deliver_all", True)),
    Edit("consumergroup/coder", "delivery.lease", "20s", _route("coder", "lease", 20_000)),
    Edit("consumergroup/coder", "delivery.deadline", "1m", _route("coder", "deadline", 60_000)),
    Edit("consumergroup/coder", "delivery.maxDeliveries", 7, _route("coder", "max_deliveries", 7)),
    Edit("consumergroup/coder", "delivery.backoff.initial", "3s", _route("coder", "backoff_initial", 3_000)),
    Edit("consumergroup/coder", "delivery.backoff.factor", 4, _route("coder", "backoff_factor", 4)),
    Edit("consumergroup/coder", "delivery.backoff.max", "9s", _route("coder", "backoff_max", 9_000)),
    Edit(
        "consumergroup/coder",
        "deadLetter.maxLength",
        3,
        lambda p: "more than 3" in p.condition("consumergroup/coder", "DeadLettering")["message"],
    ),
    Edit(
        "consumergroup/coder",
        "deadLetter.minAge",
        "1m",
        lambda p: p.length(f"{p.key('tasks')}:dlq:coder") < PER_NODE,
    ),
    Edit("consumergroup/coder", "deadLetter.enabled", False, _route("coder", "dead_letters", False)),
    Edit(
        "consumergroup/fixed",
        "template",
        idle(terminationGracePeriodSeconds=77),
        lambda p: (
            p.kubectl.get("deployment", "fixed-consumer")["spec"]["template"]["spec"][
                "terminationGracePeriodSeconds"
            ]
            == 77
        ),
    ),
    Edit("consumergroup/fixed", "replicas", 2, lambda p: p.replicas("fixed-consumer") == 2),
    Edit("consumergroup/resting", "suspend", True, lambda p: p.replicas("resting-consumer") == 0),
    Edit("consumergroup/guest", "replicas", 2, lambda p: p.replicas("theirs") == 2),
    Edit("consumergroup/guest", "deploymentRef.name", "others", lambda p: p.replicas("others") == 2),
    # ten messages wait: 5 to a pod makes 2
    Edit(
        "consumergroup/scaled", "autoscaling.targetBacklog", 2, lambda p: p.replicas("scaled-consumer") == 3
    ),
    Edit("consumergroup/scaled", "autoscaling.maxReplicas", 4, lambda p: p.replicas("scaled-consumer") == 4),
    # half a pod would do: there are fewer only where they do for a tenth more, too
    Edit(
        "consumergroup/scaled", "autoscaling.targetBacklog", 20, lambda p: p.replicas("scaled-consumer") == 4
    ),
    Edit(
        "consumergroup/scaled",
        "autoscaling.scaleDownAfter",
        "1s",
        lambda p: p.replicas("scaled-consumer") == 1,
    ),
    Edit("consumergroup/scaled", "autoscaling.minReplicas", 2, lambda p: p.replicas("scaled-consumer") == 2),
    Edit("consumergroup/scaled", "autoscaling.mode", "HPA", lambda p: p.autoscaler("scaled-consumer")),
    Edit("consumergroup/scaled", "autoscaling.mode", "Direct", lambda p: not p.autoscaler("scaled-consumer")),
    # it is over, and nobody knows how fast a pod is: one more at a time
    Edit("consumergroup/scaled", "autoscaling.targetAge", "1s", lambda p: p.replicas("scaled-consumer") > 2),
    # nobody takes retries: with a window of 1 there are two, and then it waits
    Edit("streamreplay/slow", "suspend", False, lambda p: 0 < p.replay().get("moved", 0) <= 2),
    Edit("streamreplay/slow", "window", 10 * PER_NODE, lambda p: p.replay().get("moved", 0) > 2),
    # one in a second would take a quarter of an hour
    Edit("streamreplay/slow", "rate", PER_NODE, lambda p: p.replay().get("moved") == PER_NODE),
)

ELSEWHERE = {
    # what it does is seen at the deletion: test_deletion.py
    ("agentstreams", "deletionPolicy"),
    ("consumergroups", "deletionPolicy"),
    # what it does is seen after the end: tests/cluster/test_operator_access.py
    ("streamreplays", "ttlSecondsAfterFinished"),
}


def test_every_field_that_may_be_edited_takes_effect(place: Place, subtests: pytest.Subtests) -> None:
    # one after the other: each edit builds on the resource as the ones before left it
    for edit in EDITS:
        with subtests.test(str(edit)):
            place.kubectl.patch(edit.resource, edit.change())
            until(lambda edit=edit: edit.effect(place), 20)
            until(lambda edit=edit: in_effect(place.kubectl.get(*edit.resource.split("/"))), 20)


def mutable_fields(plural: str) -> set[tuple[str, str]]:
    """What the resource definition lets one edit."""
    text = (ROOT / "crds" / f"{plural}.agentstream.dev.yaml").read_text()
    schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fixed = {rule["fieldPath"] for rule in schema["x-kubernetes-validations"] if "fieldPath" in rule}

    def leaves(part: dict[str, Any], path: str) -> Iterator[str]:
        properties = {} if path == ".template" else part.get("properties", {})
        if path not in fixed:
            yield from () if properties else (path,)
            for name, inner in properties.items():
                yield from leaves(inner, f"{path}.{name}")

    return {(plural, path.removeprefix(".")) for path in leaves(schema, "")}


def test_no_field_was_forgotten() -> None:
    edited = {(f"{edit.resource.partition('/')[0]}s", edit.field) for edit in EDITS}
    plurals = ("agentstreams", "consumergroups", "streamreplays")
    assert set().union(*(mutable_fields(plural) for plural in plurals)) == edited | ELSEWHERE


@pytest.mark.parametrize(
    ("resource", "change", "why"),
    [
        ("agentstream/tasks", {"key": "other"}, "key is immutable"),
        ("consumergroup/coder", {"group": "other"}, "group is immutable"),
        ("consumergroup/coder", {"agent": "other"}, "agent is immutable"),
        ("consumergroup/coder", {"startFrom": "Beginning"}, "startFrom is immutable"),
        (
            "consumergroup/coder",
            {"streamRef": {"name": "x"}},
            "streamRef is immutable",
        ),
        ("consumergroup/scaled", {"replicas": 1}, "replicas and autoscaling exclude each other"),
        ("streamreplay/slow", {"limit": 7}, "limit is immutable"),
    ],
)
def test_what_may_not_be_edited_is_refused_with_the_reason(
    place: Place, resource: str, change: dict[str, Any], why: str
) -> None:
    assert why in place.kubectl.refuses_patch(resource, {"spec": change})


def test_a_group_is_scaled_as_a_deployment_is(place: Place) -> None:
    place.kubectl.apply(a_group("counted", "tasks", template=idle()))
    place.kubectl.ready("consumergroup/counted")
    place.kubectl("scale", "consumergroup/counted", "--replicas=3")
    until(lambda: place.replicas("counted-consumer") == 3)
