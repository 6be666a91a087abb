"""Rights: exactly what operator and hook do, in the whole cluster or in the watched namespaces alone."""

from __future__ import annotations

import pytest

from support.helm import EMBEDDED, EXTERNAL, NAMESPACE, PROMETHEUS
from unit.chart.variants import BARE, EVERYTHING

OPERATOR = {
    ("agentstream.dev", "agentstreams", ""): {"get", "list", "watch", "patch"},
    ("agentstream.dev", "consumergroups", ""): {"get", "list", "watch", "patch"},
    ("agentstream.dev", "streamreplays", ""): {"get", "list", "watch", "delete"},
    ("agentstream.dev", "agentstreams/status", ""): {"patch"},
    ("agentstream.dev", "consumergroups/status", ""): {"patch"},
    ("agentstream.dev", "streamreplays/status", ""): {"patch"},
    ("", "secrets", ""): {"get", "list", "watch", "create", "patch", "delete"},
    ("", "pods", ""): {"list", "watch", "patch"},
    ("", "namespaces", ""): {"get"},
    ("", "events", ""): {"create"},
    ("apps", "deployments", ""): {"get", "list", "watch", "create", "patch", "delete"},
    ("apps", "deployments/scale", ""): {"patch"},
    ("autoscaling", "horizontalpodautoscalers", ""): {"get", "list", "watch", "create", "patch", "delete"},
}
LEADER = {
    ("coordination.k8s.io", "leases", "agentstream-agentstream"): {"get", "patch"},
    ("coordination.k8s.io", "leases", ""): {"create"},
}
HOOK = {
    ("agentstream.dev", "agentstreams", ""): {"get", "list", "patch"},
    ("agentstream.dev", "consumergroups", ""): {"get", "list", "patch"},
}
STOP = {
    ("apps", "deployments", "agentstream"): {"get"},
    ("apps", "deployments/scale", "agentstream"): {"patch"},
}


def rules(role):
    """The rules of a role: group, resource and name -> verbs."""
    found = {}
    for rule in role["rules"]:
        assert rule.keys() <= {"apiGroups", "resources", "resourceNames", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    found.setdefault((group, resource, name), set()).update(rule["verbs"])
    return found


def granted(rendered, account):
    """What a ServiceAccount may do: namespace, or "" for all -> rules."""
    found = {}
    for binding in [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]:
        assert binding["roleRef"]["apiGroup"] == "rbac.authorization.k8s.io"
        subjects = [(s["kind"], s["name"], s["namespace"]) for s in binding["subjects"]]
        assert subjects in (
            [("ServiceAccount", name, NAMESPACE)] for name in rendered.names("ServiceAccount")
        )
        if subjects[0][1] == account:
            namespace = binding["metadata"].get("namespace", "")
            role = rendered.one(binding["roleRef"]["kind"], binding["roleRef"]["name"], namespace or None)
            found.setdefault(namespace, {}).update(rules(role))
    return found


def test_the_operator_has_these_rights_and_no_others(helm):
    assert granted(helm.render(EMBEDDED), "agentstream") == {"": OPERATOR, NAMESPACE: LEADER}


def test_the_hook_has_these_rights_and_no_others(helm):
    assert granted(helm.render(EMBEDDED), "agentstream-pre-delete") == {"": HOOK, NAMESPACE: STOP}


def test_in_watched_namespaces_the_rights_are_the_same_and_elsewhere_there_are_none(helm):
    rendered = helm.render(
        {**EMBEDDED, "watchNamespaces": ["team-a", "team-b"], "rbac": {"aggregate": False}}
    )

    assert rendered.of("ClusterRole") == []
    assert rendered.of("ClusterRoleBinding") == []
    assert granted(rendered, "agentstream") == {"team-a": OPERATOR, "team-b": OPERATOR, NAMESPACE: LEADER}
    assert granted(rendered, "agentstream-pre-delete") == {"team-a": HOOK, "team-b": HOOK, NAMESPACE: STOP}


def test_the_namespace_of_the_release_may_be_watched_too(helm):
    rendered = helm.render({**EMBEDDED, "watchNamespaces": [NAMESPACE]})

    assert granted(rendered, "agentstream") == {NAMESPACE: {**OPERATOR, **LEADER}}
    assert granted(rendered, "agentstream-pre-delete") == {NAMESPACE: {**HOOK, **STOP}}


def test_the_lease_is_named_after_the_installation(helm):
    rights = granted(helm.render({**EMBEDDED, "installation": "blue"}), "agentstream")[NAMESPACE]

    assert ("coordination.k8s.io", "leases", "agentstream-blue") in rights


def test_nothing_needs_an_administrator_of_the_cluster(variant):
    for role in [*variant.of("Role"), *variant.of("ClusterRole")]:
        for (group, resource, _), verbs in rules(role).items():
            assert "*" not in {group, resource, *verbs}
            assert group != "rbac.authorization.k8s.io"
            assert not verbs & {"bind", "escalate", "impersonate"}


def test_roles_of_the_cluster_cover_the_resources(helm):
    rendered = helm.render(EXTERNAL)
    view, edit = (
        rendered.one("ClusterRole", "agentstream-view"),
        rendered.one("ClusterRole", "agentstream-edit"),
    )

    def covered(role):
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {key.removeprefix(prefix) for key in role["metadata"]["labels"] if key.startswith(prefix)}

    assert covered(view) == {"view", "edit", "admin"}
    assert covered(edit) == {"edit", "admin"}
    numbers = ("agentstream.dev", "consumergroups/lag", "")
    reading = {"get", "list", "watch"}
    assert {rule: verbs for rule, verbs in rules(view).items() if verbs != reading} == {numbers: {"get"}}
    writing = {"create", "update", "patch", "delete", "deletecollection"}
    assert rules(edit) == {
        ("agentstream.dev", "agentstreams", ""): writing,
        ("agentstream.dev", "consumergroups", ""): writing,
        ("agentstream.dev", "streamreplays", ""): writing,
        ("agentstream.dev", "agentstreams/messages", ""): {"get"},
        ("agentstream.dev", "consumergroups/deadletters", ""): {"get"},
        ("agentstream.dev", "consumergroups/scale", ""): {"update", "patch"},
    }
    # nobody's verdict about a resource but the operator's
    assert not any("status" in resource for _, resource, _ in rules(edit))


def test_rights_can_be_left_to_others(helm):
    rendered = helm.render(BARE)

    kinds = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"}
    assert not kinds & {document["kind"] for document in rendered}
    assert rendered.operator["serviceAccountName"] == "default"


@pytest.mark.parametrize(
    ("values", "account"),
    [
        ({"serviceAccount": {"create": False, "name": "theirs"}}, "theirs"),
        ({"serviceAccount": {"create": True, "name": "ours"}}, "ours"),
    ],
)
def test_another_account_gets_the_same_rights(helm, values, account):
    rendered = helm.render({**EXTERNAL, **values})
    (binding,) = (b for b in rendered.of("ClusterRoleBinding") if b["metadata"]["name"] == "agentstream")

    assert rendered.operator["serviceAccountName"] == account
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
    assert (account in rendered.names("ServiceAccount")) == values["serviceAccount"]["create"]


def test_without_rights_of_its_own_the_hook_uses_the_operators_account(helm):
    rendered = helm.render({**EXTERNAL, "rbac": {"create": False}})
    (job,) = rendered.of("Job")

    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "agentstream"


def test_the_test_pod_needs_no_rights(helm):
    (pod,) = helm.render(EVERYTHING, knows=PROMETHEUS).of("Pod")

    assert pod["spec"]["serviceAccountName"] == "default"
