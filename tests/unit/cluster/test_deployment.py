"""The Deployment that is made of a group's template, how it is named and found again."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agentstream_operator.cluster.deployment import (
    BINDING,
    HEALTH_PORT,
    HEALTH_PORT_NAME,
    deployment,
    revision,
)
from agentstream_operator.cluster.labels import (
    AGENT_LABEL,
    GROUP_LABEL,
    MANAGED_BY,
    OURS,
    deployment_name,
    is_ours,
    secret_name,
)
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.resources import a_group

Json = dict[str, Any]
AGENT: Json = {"name": "agent", "image": "agent:1"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def a_pod(containers: tuple[Json, ...] = (AGENT,), metadata: Json | None = None, **spec: Any) -> Json:
    """A template."""
    template: Json = {"spec": {"containers": [dict(container) for container in containers], **spec}}
    return template if metadata is None else {"metadata": metadata, **template}


def made(template: Json, **spec: Any) -> Json:
    """The pod template of the Deployment that is made of a template."""
    found: Json = deployment(a_group(template=template, **spec), 1)["spec"]["template"]
    return found


def agent_of(pod: Json) -> Json:
    """The first container."""
    first: Json = pod["spec"]["containers"][0]
    return first


def env_of(container: Json) -> dict[str, Any]:
    """The environment of a container: values, or where they come from, by name."""
    return {
        variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]
    }


def at(found: Any, path: str) -> Any:
    """What is at a path, such as `spec.containers.0.name`."""
    for step in path.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    return found


def test_a_deployment_belongs_to_its_group_and_is_found_by_labels() -> None:
    group = a_group("review", agent="coder", template=a_pod())
    body = deployment(group, 3)
    assert (body["metadata"]["name"], body["metadata"]["namespace"]) == ("review-consumer", "team")
    assert body["spec"]["replicas"] == 3
    assert body["spec"]["selector"] == {"matchLabels": {GROUP_LABEL: "review"}}
    labels = {MANAGED_BY: "agentstream", GROUP_LABEL: "review", AGENT_LABEL: "coder"}
    assert body["metadata"]["labels"] == labels
    assert body["spec"]["template"]["metadata"]["labels"] == labels
    assert body["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "agentstream.dev/v1alpha1",
            "kind": "ConsumerGroup",
            "name": "review",
            "uid": "team-review",
            "controller": True,
        }
    ]


def test_there_is_none_without_a_template() -> None:
    with pytest.raises(ValueError, match="ConsumerGroup team/coder has no template"):
        deployment(a_group(), 1)


@pytest.mark.parametrize(
    ("given", "path", "kept"),
    [
        (a_pod(nodeSelector={"disk": "fast"}), "spec.nodeSelector", {"disk": "fast"}),
        (a_pod(tolerations=[{"key": "gpu"}]), "spec.tolerations", [{"key": "gpu"}]),
        (a_pod(serviceAccountName="coder"), "spec.serviceAccountName", "coder"),
        (a_pod(volumes=[{"name": "scratch", "emptyDir": {}}]), "spec.volumes.0.name", "scratch"),
        (a_pod(metadata={"labels": {"tier": "slow"}}), "metadata.labels.tier", "slow"),
        (a_pod(metadata={"annotations": {"a.example/b": "c"}}), "metadata.annotations", {"a.example/b": "c"}),
        (
            a_pod(({**AGENT, "resources": {"limits": {"cpu": 1}}},)),
            "spec.containers.0.resources.limits.cpu",
            1,
        ),
        (a_pod(({**AGENT, "command": ["a"], "args": ["b"]},)), "spec.containers.0.args", ["b"]),
        (a_pod(({**AGENT, "workingDir": "/app"},)), "spec.containers.0.workingDir", "/app"),
        (
            a_pod(({**AGENT, "volumeMounts": [{"name": "scratch", "mountPath": "/s"}]},)),
            "spec.containers.0.volumeMounts.0.mountPath",
            "/s",
        ),
        (
            a_pod(({**AGENT, "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},)),
            "spec.containers.0.env.0.valueFrom",
            {"secretKeyRef": {"name": "s"}},
        ),
    ],
)
def test_what_a_template_says_is_kept(given: Json, path: str, kept: Any) -> None:
    assert at(made(given), path) == kept


@pytest.mark.parametrize(
    ("path", "default", "given", "own"),
    [
        ("spec.automountServiceAccountToken", False, a_pod(automountServiceAccountToken=True), True),
        ("spec.enableServiceLinks", False, a_pod(enableServiceLinks=True), True),
        (
            "spec.securityContext.runAsNonRoot",
            True,
            a_pod(securityContext={"runAsNonRoot": False, "fsGroup": 7}),
            False,
        ),
        (
            "spec.securityContext.seccompProfile",
            {"type": "RuntimeDefault"},
            a_pod(securityContext={"seccompProfile": {"type": "Unconfined"}}),
            {"type": "Unconfined"},
        ),
        (
            "spec.containers.0.securityContext.allowPrivilegeEscalation",
            False,
            a_pod(({**AGENT, "securityContext": {"allowPrivilegeEscalation": True}},)),
            True,
        ),
        (
            "spec.containers.0.securityContext.capabilities",
            {"drop": ["ALL"]},
            a_pod(({**AGENT, "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},)),
            {"add": ["NET_ADMIN"]},
        ),
    ],
)
def test_where_a_template_is_silent_its_pods_are_restricted(
    path: str, default: Any, given: Json, own: Any
) -> None:
    assert at(made(a_pod()), path) == default
    assert at(made(given), path) == own


def test_what_a_template_says_of_security_is_completed() -> None:
    assert made(a_pod(securityContext={"fsGroup": 7}))["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 7,
    }


def test_no_label_of_a_template_hides_ours() -> None:
    labels = made(a_pod(metadata={"labels": {GROUP_LABEL: "other", MANAGED_BY: "me"}}))["metadata"]["labels"]
    assert (labels[GROUP_LABEL], labels[MANAGED_BY]) == ("coder", "agentstream")


@pytest.mark.parametrize(
    ("wanted", "lease", "given"),
    [
        (None, "10s", 30),
        (None, "25s", 30),
        (None, "60s", 65),
        (10, "10s", 15),
        (0, "2500ms", 8),
        (600, "10s", 600),
        (600, "1h", 3605),
    ],
)
def test_a_pod_gets_longer_to_end_than_a_lease_lasts(wanted: int | None, lease: str, given: int) -> None:
    more = {} if wanted is None else {"terminationGracePeriodSeconds": wanted}
    pod = made(a_pod(**more), delivery={"lease": lease})
    assert pod["spec"]["terminationGracePeriodSeconds"] == given


def test_the_agent_finds_its_server_and_knows_its_pod() -> None:
    pod = made(a_pod(), agent="reviewer")
    assert env_of(agent_of(pod)) == {
        "AGENTSTREAM_BINDING": BINDING,
        "AGENTSTREAM_POD": {"fieldRef": {"fieldPath": "metadata.name"}},
        "AGENTSTREAM_HEALTH_PORT": str(HEALTH_PORT),
    }
    (mount,) = agent_of(pod)["volumeMounts"]
    (volume,) = pod["spec"]["volumes"]
    assert mount == {"name": volume["name"], "mountPath": BINDING, "readOnly": True}
    assert volume["secret"] == {"secretName": "agentstream-reviewer"}


@pytest.mark.parametrize("name", ["AGENTSTREAM_BINDING", "AGENTSTREAM_POD", "AGENTSTREAM_HEALTH_PORT"])
def test_no_variable_of_a_template_is_overridden(name: str) -> None:
    agent = agent_of(made(a_pod(({**AGENT, "env": [{"name": name, "value": "mine"}]},))))
    assert env_of(agent)[name] == "mine"
    assert len(agent["env"]) == 3


def test_an_agent_is_probed_where_the_sdk_answers() -> None:
    agent = agent_of(made(a_pod()))
    asked = {kind: (agent[kind]["httpGet"]["path"], agent[kind]["httpGet"]["port"]) for kind in PROBES}
    assert asked == {
        "startupProbe": ("/livez", HEALTH_PORT),
        "readinessProbe": ("/readyz", HEALTH_PORT),
        "livenessProbe": ("/livez", HEALTH_PORT),
    }


@pytest.mark.parametrize("kind", PROBES)
def test_a_template_with_a_probe_of_its_own_gets_no_others(kind: str) -> None:
    own = {"exec": {"command": ["true"]}}
    agent = agent_of(made(a_pod(({**AGENT, kind: own},))))
    assert {name: agent[name] for name in PROBES if name in agent} == {kind: own}


def test_an_agent_that_says_where_it_answers_probes_is_not_asked_elsewhere() -> None:
    agent = agent_of(made(a_pod(({**AGENT, "env": [{"name": "AGENTSTREAM_HEALTH_PORT", "value": "0"}]},))))
    assert not agent.keys() & set(PROBES)


PORT = {"name": HEALTH_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"}
WEB = {"name": "web", "containerPort": 80}


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        ({}, [PORT]),
        ({"ports": [WEB]}, [WEB, PORT]),
        # what the template says of it stays
        ({"ports": [{**WEB, "name": "agentstream"}]}, [{**WEB, "name": "agentstream"}]),
        ({"ports": [{**WEB, "containerPort": HEALTH_PORT}]}, [{**WEB, "containerPort": HEALTH_PORT}]),
        # the API server says what is wrong with it
        ({"ports": "none"}, "none"),
        ({"env": [{"name": "AGENTSTREAM_HEALTH_PORT", "value": "0"}]}, None),
    ],
)
def test_the_port_where_the_sdk_answers_has_a_name(given: dict[str, Any], ports: Any) -> None:
    assert agent_of(made(a_pod(({**AGENT, **given},)))).get("ports") == ports


def test_other_containers_are_restricted_and_else_left_alone() -> None:
    first, side = {"name": "fetch", "image": "fetch:1"}, {"name": "side", "image": "side:1"}
    spec = made(a_pod((AGENT, side), initContainers=[first]))["spec"]
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert spec["initContainers"] == [{**first, "securityContext": restricted}]
    assert {name: value for name, value in spec["containers"][1].items() if value} == {
        **side,
        "securityContext": restricted,
    }


def test_a_template_without_init_containers_gets_none() -> None:
    assert "initContainers" not in made(a_pod())["spec"]


GROUP = a_group(template=a_pod(nodeSelector={"a": "1", "b": "2"}))


def test_the_digest_does_not_depend_on_the_number_of_replicas() -> None:
    assert revision(deployment(GROUP, 0)) == revision(deployment(GROUP, 7))


def test_the_digest_does_not_depend_on_the_order_of_fields() -> None:
    other = a_group(template=a_pod(nodeSelector={"b": "2", "a": "1"}))
    assert revision(deployment(GROUP, 1)) == revision(deployment(other, 1))


@pytest.mark.parametrize(
    "other",
    [
        a_group(template=a_pod(nodeSelector={"a": "1"})),
        a_group(template=a_pod(nodeSelector={"a": "1", "b": "2"}), agent="other"),
        a_group(template=a_pod(nodeSelector={"a": "1", "b": "2"}), delivery={"lease": "1m"}),
        a_group(template=a_pod(nodeSelector={"a": "1", "b": "2"}), meta={"uid": "born again"}),
    ],
    ids=["template", "agent", "lease", "uid"],
)
def test_the_digest_changes_with_what_is_applied(other: ConsumerGroup) -> None:
    assert revision(deployment(GROUP, 1)) != revision(deployment(other, 1))


def test_the_digest_does_not_change_with_what_is_not_applied() -> None:
    other = a_group(template=a_pod(nodeSelector={"a": "1", "b": "2"}), deadLetter={"enabled": False})
    assert revision(deployment(GROUP, 1)) == revision(deployment(other, 1))


def test_making_a_deployment_leaves_the_group_as_it_is() -> None:
    group = a_group(template=a_pod(initContainers=[{"name": "fetch"}]))
    before = copy.deepcopy(group)
    first = deployment(group, 1)
    assert group == before
    assert deployment(group, 1) == first


@pytest.mark.parametrize(
    ("wrong", "path", "kept"),
    [
        (a_pod(initContainers="none"), "spec.initContainers", "none"),
        (a_pod(initContainers=["none"]), "spec.initContainers", ["none"]),
        (a_pod(securityContext="strict"), "spec.securityContext", "strict"),
        (a_pod(volumes="none"), "spec.volumes", "none"),
        (a_pod(terminationGracePeriodSeconds="long"), "spec.terminationGracePeriodSeconds", "long"),
        (
            a_pod(({**AGENT, "securityContext": "strict"},)),
            "spec.containers.0.securityContext",
            "strict",
        ),
        (a_pod(({**AGENT, "volumeMounts": "none"},)), "spec.containers.0.volumeMounts", "none"),
    ],
)
def test_what_makes_no_sense_is_left_to_the_api_server_to_refuse(wrong: Json, path: str, kept: Any) -> None:
    assert at(made(wrong), path) == kept


def test_children_are_named_after_whom_they_are_for() -> None:
    assert (deployment_name("review"), secret_name("coder")) == ("review-consumer", "agentstream-coder")


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({"labels": {MANAGED_BY: "agentstream", "a": "b"}}, True),
        ({"labels": {MANAGED_BY: "Helm"}}, False),
        ({"labels": {}}, False),
        ({"labels": None}, False),
        ({}, False),
    ],
)
def test_what_is_ours_carries_our_label(metadata: dict[str, Any], *, ours: bool) -> None:
    assert is_ours(metadata) is ours


def test_the_selector_finds_what_is_ours() -> None:
    name, value = OURS.split("=")
    assert is_ours({"labels": {name: value}})
