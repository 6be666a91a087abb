"""What a user sees of resources with kubectl, with the status as the operator writes it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.submitting import collection, crds
from support.apiserver import ApiServer
from support.kubectl import Kubectl
from unit.resources.manifests import a_group, a_replay, a_stream, a_template

STREAM = {"key": "{team.tasks}", "length": 1200, "groups": 2}
GROUP = {
    "group": "coders",
    "backlog": 40,
    "pending": 8,
    "deadLetters": 2,
    "replicas": 3,
    "selector": "agentstream.dev/group=a",
}


def a_condition(status: str, reason: str, message: str = "", generation: int = 1) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


def report(kubectl: Kubectl, resource: str, status: dict[str, Any], *conditions: dict[str, Any]) -> None:
    """Writes a status through its subresource."""
    patch = json.dumps({"status": {**status, "conditions": conditions}})
    kubectl("patch", resource, "--subresource=status", "--type=merge", "-p", patch)


@pytest.fixture
def tasks(kubectl: Kubectl) -> str:
    """A stream that is ready."""
    kubectl.apply(a_stream())
    report(kubectl, "agentstreams/tasks", STREAM, a_condition("True", "Ready"))
    return "agentstreams/tasks"


@pytest.fixture
def coder(kubectl: Kubectl) -> str:
    """A group that is not."""
    kubectl.apply(a_group(template=a_template(), replicas=3))
    condition = a_condition("False", "StreamMissing", "there is no AgentStream tasks in this namespace")
    oldest = f"{datetime.now(UTC) - timedelta(minutes=5):%Y-%m-%dT%H:%M:%SZ}"
    report(kubectl, "consumergroups/coder", GROUP | {"oldest": oldest}, condition)
    return "consumergroups/coder"


@pytest.mark.parametrize("wide", [(), ("-o", "wide")], ids=["plain", "wide"])
def test_the_columns_of_streams(kubectl: Kubectl, tasks: str, wide: tuple[str, ...]) -> None:
    header, row = kubectl("get", "agentstreams", *wide).splitlines()
    assert header.split() == ["NAME", "KEY", "LENGTH", "GROUPS", "READY", "REASON", "AGE"]
    assert row.split()[:-1] == ["tasks", "{team.tasks}", "1200", "2", "True", "Ready"]


@pytest.mark.parametrize("wide", [(), ("-o", "wide")], ids=["plain", "wide"])
def test_the_columns_of_groups(kubectl: Kubectl, coder: str, wide: tuple[str, ...]) -> None:
    header, row = kubectl("get", "consumergroups", *wide).splitlines()
    assert header.split() == [
        *("NAME", "STREAM", "GROUP", "BACKLOG", "PENDING", "OLDEST", "DEAD", "REPLICAS", "READY"),
        *("REASON", "AGE"),
    ]
    columns = row.split()
    assert columns[:5] == ["coder", "tasks", "coders", "40", "8"]
    assert re.fullmatch(r"5m\d*s?", columns[5])
    assert columns[6:-1] == ["2", "3", "False", "StreamMissing"]


def test_what_is_not_known_of_a_group_is_empty(kubectl: Kubectl) -> None:
    kubectl.apply(a_group())
    _, row = kubectl("get", "consumergroups").splitlines()
    assert row.split()[:2] == ["coder", "tasks"]
    assert len(row.split()) == 3


REPLAY = {"phase": "Running", "matched": 1000, "moved": 812, "handled": 640, "dead": 3}


@pytest.mark.parametrize(("wide", "more"), [((), []), (("-o", "wide"), ["Replaying"])], ids=["plain", "wide"])
def test_the_columns_of_replays(kubectl: Kubectl, wide: tuple[str, ...], more: list[str]) -> None:
    kubectl.apply(a_replay())
    report(kubectl, "streamreplays/again", REPLAY, a_condition("True", "Replaying"))
    header, row = kubectl("get", "streamreplays", *wide).splitlines()
    columns = ["NAME", "GROUP", "SOURCE", "MATCHED", "MOVED", "HANDLED", "DEAD", "PHASE", "AGE"]
    assert header.split() == [*columns, *(["REASON"] if more else [])]
    cells = row.split()
    assert cells[:8] == ["again", "coder", "Stream", "1000", "812", "640", "3", "Running"]
    assert cells[9:] == more
    assert kubectl("get", "sreplay", "-o", "name") == "streamreplay.agentstream.dev/again\n"


def test_a_replay_that_nobody_has_looked_at_has_no_numbers(kubectl: Kubectl) -> None:
    kubectl.apply(a_replay())
    _, row = kubectl("get", "streamreplays").splitlines()
    assert row.split()[:3] == ["again", "coder", "Stream"]
    assert len(row.split()) == 4


def test_short_names_and_the_category_of_all(kubectl: Kubectl, tasks: str, coder: str) -> None:
    assert kubectl("get", "astream", "-o", "name") == "agentstream.agentstream.dev/tasks\n"
    assert kubectl("get", "cgroup", "-o", "name") == "consumergroup.agentstream.dev/coder\n"
    assert kubectl("get", "agentstream", "tasks", "-o", "name") == "agentstream.agentstream.dev/tasks\n"
    (category,) = crds()["AgentStream"]["spec"]["names"]["categories"]
    listed = kubectl("get", category, "-A", "--no-headers")
    assert f"{kubectl.namespace} " in listed
    assert "agentstream.agentstream.dev/tasks" in listed
    assert "consumergroup.agentstream.dev/coder" in listed


def test_waiting_until_a_resource_is_ready(kubectl: Kubectl, tasks: str, coder: str) -> None:
    assert "condition met" in kubectl("wait", "--for=condition=Ready", tasks)
    assert "timed out" in kubectl.fails("wait", "--for=condition=Ready", "--timeout=1s", coder)
    assert "condition met" in kubectl("wait", "--for=condition=Ready=False", coder)
    report(kubectl, coder, GROUP, a_condition("True", "Ready"))
    assert "condition met" in kubectl("wait", "--for=condition=Ready", coder)


def test_waiting_after_a_change_is_for_what_was_changed(kubectl: Kubectl, tasks: str) -> None:
    kubectl.apply(a_stream(broadcast=True))
    assert "timed out" in kubectl.fails("wait", "--for=condition=Ready", "--timeout=1s", tasks)
    report(kubectl, tasks, STREAM, a_condition("True", "Ready", generation=2))
    assert "condition met" in kubectl("wait", "--for=condition=Ready", tasks)


def test_a_description_says_why_a_resource_is_not_ready(kubectl: Kubectl, coder: str) -> None:
    said = kubectl("describe", coder)
    assert "Reason:                StreamMissing" in said
    assert "there is no AgentStream tasks in this namespace" in said


@pytest.mark.parametrize("spec", [{"replicas": 1}, {}], ids=["replicas", "no replicas"])
def test_scaling_a_group_that_says_how_many_pods(kubectl: Kubectl, spec: dict[str, Any]) -> None:
    kubectl.apply(a_group(template=a_template(), **spec))
    assert kubectl("scale", "consumergroup", "coder", "--replicas=5").strip().endswith("scaled")
    assert kubectl.get("consumergroup", "coder")["spec"]["replicas"] == 5
    report(kubectl, "consumergroups/coder", GROUP)
    scale = json.loads(kubectl("get", "consumergroup", "coder", "--subresource=scale", "-o", "json"))
    assert scale["spec"] == {"replicas": 5}
    assert scale["status"] == {"replicas": 3, "selector": "agentstream.dev/group=a"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"template": a_template(), "autoscaling": {}},
            "replicas and autoscaling exclude each other",
        ),
        ({}, "replicas and autoscaling need a template or deploymentRef"),
    ],
    ids=["autoscaling", "no workload"],
)
def test_scaling_what_cannot_be_scaled_is_refused_with_the_reason(
    kubectl: Kubectl, spec: dict[str, Any], reason: str
) -> None:
    kubectl.apply(a_group(**spec))
    assert reason in kubectl.fails("scale", "consumergroup", "coder", "--replicas=5")
    assert "replicas" not in kubectl.get("consumergroup", "coder")["spec"]


def test_a_dry_run_on_the_server_checks_everything_and_stores_nothing(kubectl: Kubectl) -> None:
    said = kubectl("apply", "--dry-run=server", "-f", "-", manifest=[a_stream(), a_group()])
    assert said.count("created (server dry run)") == 2
    broken = a_group(template=a_template(), replicas=1, autoscaling={})
    said = kubectl.fails("apply", "--dry-run=server", "-f", "-", manifest=broken)
    assert "replicas and autoscaling exclude each other" in said
    assert kubectl.list("agentstreams") + kubectl.list("consumergroups") == []


def test_spec_and_status_are_written_apart(kubectl: Kubectl, api_server: ApiServer, tasks: str) -> None:
    before = kubectl.get("agentstreams", "tasks")
    # whoever applies a manifest cannot write the status
    kubectl.apply({**a_stream(broadcast=True), "status": {"length": 7}})
    applied = kubectl.get("agentstreams", "tasks")
    assert applied["status"] == before["status"]
    assert applied["metadata"]["generation"] == before["metadata"]["generation"] + 1
    # and whoever writes the status, nothing else
    path = f"{collection('AgentStream', kubectl.namespace)}/tasks/status?fieldManager=test&force=true"
    api_server.expect(
        "PATCH",
        path,
        {**a_stream(broadcast=False), "status": {"length": 7}},
        content_type="application/apply-patch+yaml",
    )
    reported = kubectl.get("agentstreams", "tasks")
    assert (reported["spec"]["broadcast"], reported["status"]["length"]) == (True, 7)
    assert reported["metadata"]["generation"] == applied["metadata"]["generation"]
