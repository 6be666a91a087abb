"""Two resources that claim the same: the oldest has it, the other says who has.

Ages are whole seconds, and of two of the same second the first by name has it: so the younger ones are named.
"""

from __future__ import annotations

from harness.kubectl import Kubectl, condition
from harness.manifests import a_group, a_stream
from harness.waiting import until


def test_of_two_streams_with_one_key_the_older_has_it(kubectl: Kubectl) -> None:
    kubectl.apply(a_stream("tasks"))
    kubectl.ready("agentstream/tasks")
    kubectl.apply(a_stream("tasks-again", key=f"{{{kubectl.namespace}.tasks}}"))
    kubectl.wait("agentstream/tasks-again", condition="condition=Conflict")
    conflict = condition(kubectl.get("agentstream", "tasks-again"), "Conflict")
    assert conflict["reason"] == "KeyClaimed"
    assert "tasks" in conflict["message"]
    kubectl.ready("agentstream/tasks")


def test_the_younger_stream_has_the_key_when_the_older_is_gone(kubectl: Kubectl) -> None:
    kubectl.apply(a_stream("tasks"))
    kubectl.ready("agentstream/tasks")
    kubectl.apply(a_stream("tasks-again", key=f"{{{kubectl.namespace}.tasks}}"))
    kubectl.wait("agentstream/tasks-again", condition="condition=Conflict")
    kubectl("delete", "agentstream/tasks")
    kubectl.ready("agentstream/tasks-again")


def test_of_two_resources_with_one_group_the_older_has_it(kubectl: Kubectl) -> None:
    kubectl.apply(a_stream("tasks"), a_group("coder", "tasks"))
    kubectl.ready("consumergroup/coder")
    kubectl.apply(a_group("coder-again", "tasks", group="coder"))
    kubectl.wait("consumergroup/coder-again", condition="condition=Conflict")
    conflict = condition(kubectl.get("consumergroup", "coder-again"), "Conflict")
    assert conflict["reason"] == "GroupClaimed"
    assert "coder" in conflict["message"]
    kubectl("delete", "consumergroup/coder")
    kubectl.ready("consumergroup/coder-again")


def test_a_key_of_another_namespace_is_not_to_be_had(kubectl: Kubectl) -> None:
    kubectl.apply(a_stream("theirs", key="{kube-system.tasks}"))
    kubectl.wait("agentstream/theirs", condition="condition=Conflict")
    assert condition(kubectl.get("agentstream", "theirs"), "Conflict")["reason"] == "KeyNotAllowed"


def test_a_deployment_of_somebody_else_is_left_alone(kubectl: Kubectl) -> None:
    kubectl("create", "deployment", "coder-consumer", "--image=redis:8.2.10", "--replicas=0")
    command = ["sleep", "infinity"]
    template = {"spec": {"containers": [{"name": "agent", "image": "redis:8.2.10", "command": command}]}}
    kubectl.apply(a_stream("tasks"), a_group("coder", "tasks", template=template))

    until(lambda: condition(kubectl.get("consumergroup", "coder"), "Ready").get("reason") == "ChildNotOurs")
    deployment = kubectl.get("deployment", "coder-consumer")
    assert deployment["spec"]["replicas"] == 0
    assert "ownerReferences" not in deployment["metadata"]
