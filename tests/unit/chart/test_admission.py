"""The policies of the API server: in the watched namespaces alone, and only where there are such policies."""

from __future__ import annotations

import pytest

from support.helm import CHART, EMBEDDED, EXTERNAL, NAMESPACE, RELEASE, Refused, settings

POLICIES = {
    "agentstream-consumers",
    "agentstream-operator",
    "agentstream-replays",
    "agentstream-replay-events",
}


def test_there_are_three_for_people_and_one_for_the_operator_and_all_are_enforced(helm):
    rendered = helm.render(EMBEDDED)

    assert rendered.names("ValidatingAdmissionPolicy") == POLICIES
    bindings = rendered.of("ValidatingAdmissionPolicyBinding")
    assert {binding["spec"]["policyName"] for binding in bindings} == POLICIES
    assert all(binding["spec"]["validationActions"] == ["Deny"] for binding in bindings)
    for policy in rendered.of("ValidatingAdmissionPolicy"):
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert "namespaceSelector" not in policy["spec"]["matchConstraints"]


@pytest.mark.parametrize(
    ("values", "account"),
    [({}, "agentstream"), ({"serviceAccount": {"name": "theirs", "create": False}}, "theirs")],
)
def test_the_operator_is_known_by_its_account(helm, values, account):
    policy = helm.render({**EXTERNAL, **values}).one("ValidatingAdmissionPolicy", "agentstream-operator")

    (condition,) = policy["spec"]["matchConditions"]
    name = f"system:serviceaccount:{NAMESPACE}:{account}"
    assert condition["expression"] == f"request.userInfo.username == '{name}'"


@pytest.mark.parametrize(
    ("values", "account"),
    [({}, "agentstream-queue-server"), ({"serviceAccount": {"name": "theirs", "create": False}}, "theirs")],
)
def test_the_queue_server_may_say_who_asked_for_a_replay(helm, values, account):
    rendered = helm.render({**EXTERNAL, **values})

    (validation,) = rendered.one("ValidatingAdmissionPolicy", "agentstream-replays")["spec"]["validations"]
    name = f"system:serviceaccount:{NAMESPACE}:{account}"
    (by,) = rendered.one("ValidatingAdmissionPolicy", "agentstream-replay-events")["spec"]["matchConditions"]
    assert f"'{name}'" in by["expression"]
    assert f"|| request.userInfo.username == '{name}'" in validation["expression"]


@pytest.mark.parametrize(
    "policy", ["agentstream-consumers", "agentstream-replays", "agentstream-replay-events"]
)
def test_only_what_is_in_the_watched_namespaces_is_judged(helm, policy):
    rendered = helm.render({**EMBEDDED, "watchNamespaces": ["team-a", "team-b"]})

    policy = rendered.one("ValidatingAdmissionPolicy", policy)
    (selected,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
    assert selected == {
        "key": "kubernetes.io/metadata.name",
        "operator": "In",
        "values": ["team-a", "team-b"],
    }


def test_they_can_be_left_out(helm):
    rendered = helm.render({**EMBEDDED, "admissionPolicy": {"enabled": False}})

    assert not {document["kind"] for document in rendered if "Policy" in document["kind"]} - {"NetworkPolicy"}


@pytest.mark.parametrize("version", ["1.29.0", "v1.29.14-gke.1"])
def test_a_cluster_without_such_policies_is_told_what_to_do(helm, version):
    def render(**values):
        command = ("template", RELEASE, str(CHART), *settings({**EMBEDDED, **values}))
        return helm.run(*command, "--kube-version", version)

    message = (
        r"needs Kubernetes 1\.30 or newer, and this cluster has v1\.29.*set admissionPolicy\.enabled=false"
    )
    with pytest.raises(Refused, match=message):
        render()
    assert "ValidatingAdmissionPolicy" not in render(admissionPolicy={"enabled": False})


@pytest.mark.parametrize("version", ["1.30.0", "v1.30.1-gke.7", "v1.37.0"])
def test_newer_clusters_have_them(helm, version):
    command = ("template", RELEASE, str(CHART), *settings(EMBEDDED), "--kube-version", version)

    assert "kind: ValidatingAdmissionPolicy\n" in helm.run(*command)
