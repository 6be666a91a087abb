"""Nobody gets from the operator what they may not do themselves, and the operator does only what it must."""

from __future__ import annotations

from typing import Any

import pytest

from support.apiserver import ApiServer
from support.deployed import grant
from support.kubectl import Kubectl, KubectlError
from support.waiting import until
from unit.resources.manifests import a_group, a_replay, a_stream, a_template

OUTSIDER, DEPLOYER, SCALER = "outsider", "deployer", "scaler"
RIGHTS = {
    OUTSIDER: [],
    DEPLOYER: [("apps", "deployments", ["create"]), ("apps", "deployments/scale", ["patch"])],
    SCALER: [("apps", "deployments/scale", ["update"])],
}
MAY = {SCALER: ["theirs"]}

HOSTILE = {
    "spec": {
        "hostPID": True,
        "hostNetwork": True,
        "nodeName": "control-plane",
        "serviceAccountName": "treasurer",
        "containers": [{"name": "a", "image": "a", "envFrom": [{"secretRef": {"name": "bank"}}]}],
        "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
    }
}
NO_DEPLOYMENTS = (
    "spec.template: {user} may not create Deployments in the namespace {namespace}, so the operator creates"
    " none for this ConsumerGroup: ask for the permission to create deployments.apps there, or omit"
)
NO_SCALING = (
    "may not scale the Deployment {deployment} in the namespace {namespace}, so the operator does not scale"
    " it for this ConsumerGroup: ask for the permission to patch deployments.apps/scale there"
)


@pytest.fixture
def guarded(api_server: ApiServer, namespace: str) -> Kubectl:
    """The namespace of the test with the chart's policies, and people with different rights in it."""
    grant(api_server, namespace, (namespace,))
    kubectl = api_server.kubectl(namespace)
    for user, rights in RIGHTS.items():
        resources = [("agentstream.dev", "consumergroups", ["get", "create", "update", "patch", "delete"])]
        names = MAY.get(user)
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": user},
            "rules": [
                {"apiGroups": [group], "resources": [kind], "verbs": verbs}
                | ({"resourceNames": names} if names and group == "apps" else {})
                for group, kind, verbs in (*resources, *rights)
            ],
        }
        kubectl.apply(role)
        kubectl("create", "rolebinding", user, f"--role={user}", f"--user={user}")
    return kubectl


def said(kubectl: Kubectl, user: str, *arguments: str, manifest: Any = None) -> str:
    """Why the server refuses a user's command; nothing if it does not."""
    try:
        kubectl(*arguments, "--as", user, manifest=manifest)
    except KubectlError as error:
        return str(error)
    return ""


def submit(kubectl: Kubectl, user: str, manifest: dict[str, Any], *how: str) -> str:
    """Why the server refuses a user's `kubectl apply`; nothing if it does not."""
    return said(kubectl, user, "apply", "-f", "-", *how, manifest=manifest)


async def refused(kubectl: Kubectl, user: str, manifest: dict[str, Any], why: str, **words: str) -> None:
    """A user's manifest is refused for this reason; the server follows new policies within a moment."""
    text = why.format(namespace=kubectl.namespace, user=user, **words)
    # what got in before the policy is there would be no change, and so not refused, ever after
    await until(lambda: text in submit(kubectl, user, manifest, "--dry-run=server"), timeout=20)
    assert "forbidden: ValidatingAdmissionPolicy" in submit(kubectl, user, manifest)


async def test_who_may_not_create_deployments_has_none_created(guarded: Kubectl) -> None:
    hostile = a_group("hostile", template=HOSTILE, agent="treasurer")
    await refused(guarded, OUTSIDER, hostile, NO_DEPLOYMENTS)
    await refused(guarded, SCALER, hostile, NO_DEPLOYMENTS)
    assert guarded.fails("get", "consumergroups", "hostile")
    assert submit(guarded, DEPLOYER, hostile) == ""
    # the administrator
    guarded.apply(a_group("admins", template=a_template()))


async def test_who_may_not_scale_a_deployment_has_it_not_scaled(guarded: Kubectl) -> None:
    group = a_group("thief", deploymentRef={"name": "theirs"}, suspend=True)
    await refused(guarded, OUTSIDER, group, NO_SCALING, deployment="theirs")
    other = a_group("thief", deploymentRef={"name": "others"}, suspend=True)
    await refused(guarded, SCALER, other, NO_SCALING, deployment="others")
    assert submit(guarded, SCALER, group) == ""
    assert submit(guarded, DEPLOYER, a_group("second", deploymentRef={"name": "others"})) == ""


async def test_a_change_of_the_consumers_needs_the_right_and_every_other_change_does_not(
    guarded: Kubectl,
) -> None:
    group = a_group("coder", template=a_template(), replicas=1)
    await refused(guarded, OUTSIDER, group, NO_DEPLOYMENTS)
    assert submit(guarded, DEPLOYER, group) == ""

    changed = a_group("coder", template=a_template(image="evil:1"), replicas=1)
    await refused(guarded, OUTSIDER, changed, NO_DEPLOYMENTS)
    for spec in ({"replicas": 9}, {"suspend": True, "replicas": 1}, {"autoscaling": {}}):
        await refused(
            guarded,
            OUTSIDER,
            a_group("coder", template=a_template(), **spec),
            NO_SCALING,
            deployment="coder-consumer",
        )
    kept = a_group("coder", template=a_template(), replicas=1, delivery={"maxDeliveries": 9})
    assert submit(guarded, OUTSIDER, kept) == ""
    assert "labeled" in guarded("label", "consumergroups", "coder", "team=a", "--as", OUTSIDER)
    patch = '{"metadata":{"finalizers":["example.com/theirs"]}}'
    guarded("patch", "consumergroups", "coder", "--type=merge", "-p", patch, "--as", OUTSIDER)
    patch = '{"metadata":{"finalizers":null}}'
    guarded("patch", "consumergroups", "coder", "--type=merge", "-p", patch, "--as", OUTSIDER)
    guarded("delete", "consumergroups", "coder", "--as", OUTSIDER)


async def test_groups_without_consumers_need_no_more_rights(guarded: Kubectl) -> None:
    await refused(guarded, OUTSIDER, a_group("x", template=a_template()), NO_DEPLOYMENTS)
    plain = a_group("plain", agent="coder")
    assert submit(guarded, OUTSIDER, plain) == ""
    await refused(guarded, OUTSIDER, a_group("plain", agent="coder", template=a_template()), NO_DEPLOYMENTS)
    await refused(
        guarded,
        OUTSIDER,
        a_group("plain", agent="coder", deploymentRef={"name": "a"}),
        NO_SCALING,
        deployment="a",
    )
    assert submit(guarded, OUTSIDER, {**plain, "spec": {**plain["spec"], "deliver": "All"}}) == ""


EDITOR = "editor"


async def test_who_may_edit_the_namespace_is_refused_nothing(guarded: Kubectl) -> None:
    # without a controller, `edit` itself stays empty
    guarded("create", "rolebinding", "edits", "--clusterrole=system:aggregate-to-edit", f"--user={EDITOR}")
    rights = ["--verb=get,create,patch,update", "--resource=consumergroups.agentstream.dev"]
    guarded("create", "role", EDITOR, *rights)
    guarded("create", "rolebinding", EDITOR, f"--role={EDITOR}", f"--user={EDITOR}")
    await refused(guarded, OUTSIDER, a_group("x", template=a_template()), NO_DEPLOYMENTS)
    scaling = {"mode": "HPA", "maxReplicas": 3}
    for change in ({"replicas": 1}, {"replicas": 2}, {"autoscaling": scaling}, {"suspend": True}):
        for workload in ({"template": a_template()}, {"deploymentRef": {"name": "theirs"}}):
            group = a_group(f"by-{next(iter(workload)).lower()}", **workload, **change)
            assert submit(guarded, EDITOR, group) == ""
            group["metadata"]["name"] += "-gitops"
            how = ("--server-side", "--force-conflicts", "--field-manager=gitops")
            assert submit(guarded, EDITOR, group, *how) == ""


async def test_a_large_template_is_judged_within_the_servers_limits_on_cost(guarded: Kubectl) -> None:
    await refused(guarded, OUTSIDER, a_group("x", template=a_template()), NO_DEPLOYMENTS)

    def large(number: int) -> dict[str, Any]:
        template = a_template()
        maps = [{"name": f"v{n}", "configMap": {"name": "x" * 200}} for n in range(1500)]
        template["spec"]["volumes"] = [*maps, {"name": "last", "configMap": {"name": f"n{number}"}}]
        return a_group("large", template=template)

    def applied(user: str, number: int) -> str:
        return submit(guarded, user, large(number), "--server-side", "--force-conflicts")

    assert [applied(DEPLOYER, number) for number in (1, 2)] == ["", ""]
    assert "may not create Deployments" in applied(OUTSIDER, 3)


ADA = "ada"
ONLY_YOUR_OWN = "agentstream.dev/requested-by can only be your own name, ada: leave it out"
NOT_CHANGED = "agentstream.dev/requested-by cannot be changed: leave it as it is"


def asked_by(name: str | None, replay: str = "again", **spec: Any) -> dict[str, Any]:
    """A replay that somebody is said to have asked for."""
    manifest = a_replay(replay, **spec)
    if name is not None:
        manifest["metadata"]["annotations"] = {"agentstream.dev/requested-by": name}
    return manifest


async def test_nobody_asks_for_a_replay_in_the_name_of_another(api_server: ApiServer, namespace: str) -> None:
    grant(api_server, namespace, (namespace,))
    kubectl, queue = (
        api_server.kubectl(namespace),
        f"system:serviceaccount:{namespace}:agentstream-queue-server",
    )
    verbs = "--verb=get,create,update,patch,delete"
    kubectl("create", "role", "replays", verbs, "--resource=streamreplays.agentstream.dev")
    kubectl("create", "rolebinding", "replays", "--role=replays", f"--user={ADA}", f"--user={queue}")
    await refused(kubectl, ADA, asked_by("grace"), ONLY_YOUR_OWN)
    await refused(kubectl, ADA, asked_by(queue), ONLY_YOUR_OWN)
    assert submit(kubectl, ADA, asked_by(None, "plain")) == ""
    assert submit(kubectl, ADA, asked_by(ADA)) == ""
    # the pace may change, and who asked for it stays
    assert submit(kubectl, ADA, asked_by(ADA, rate=7)) == ""
    for name in ("grace", None):
        said_to = submit(kubectl, ADA, asked_by(name))
        assert NOT_CHANGED in said_to, name
    assert NOT_CHANGED in submit(kubectl, ADA, asked_by(ADA, "plain"))
    # the queue server asks on behalf of its callers
    assert submit(kubectl, queue, asked_by("grace", "for-grace")) == ""
    assert submit(kubectl, ADA, asked_by("grace", "for-grace", rate=7)) == ""
    assert NOT_CHANGED in submit(kubectl, ADA, asked_by(ADA, "for-grace"))
    assert NOT_CHANGED in submit(kubectl, queue, asked_by(ADA, "for-grace"))
    # the administrator is nobody else either
    assert "can only be your own name" in kubectl.fails("apply", "-f", "-", manifest=asked_by(ADA, "other"))


ONLY_THE_OPERATOR = "only the operator and the queue server write events of StreamReplays"


async def test_nobody_else_says_in_an_event_who_did_what_to_a_replay(
    api_server: ApiServer, namespace: str
) -> None:
    operator = grant(api_server, namespace, (namespace,))
    kubectl, queue = (
        api_server.kubectl(namespace),
        f"system:serviceaccount:{namespace}:agentstream-queue-server",
    )
    kubectl(
        "create", "role", "events", "--verb=get,create,update,patch", "--resource=events,events.events.k8s.io"
    )
    subjects = [f"--user={user}" for user in (ADA, operator, queue)]
    kubectl("create", "rolebinding", "events", "--role=events", *subjects)

    def event(name: str, kind: str = "StreamReplay", group: str = "agentstream.dev") -> dict[str, Any]:
        about = {"apiVersion": f"{group}/v1alpha1", "kind": kind, "name": "again", "namespace": namespace}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "reason": "ReplayDeleted",
            "message": "deleted by grace",
        }

    def newer(name: str) -> dict[str, Any]:
        given = event(name)
        given["regarding"], given["note"] = given.pop("involvedObject"), given.pop("message")
        rest = {"action": "Delete", "type": "Normal", "eventTime": "2026-01-01T00:00:00.000000Z"}
        rest |= {"reportingController": "agentstream", "reportingInstance": "x"}
        return {**given, **rest, "apiVersion": "events.k8s.io/v1"}

    await refused(kubectl, ADA, event("forged"), ONLY_THE_OPERATOR)
    assert ONLY_THE_OPERATOR in submit(kubectl, ADA, newer("newer"))
    assert submit(kubectl, ADA, event("other-kind", "ConsumerGroup")) == ""
    assert submit(kubectl, ADA, event("other-group", group="example.com")) == ""
    for name, user in (("of-operator", operator), ("of-queue", queue)):
        assert submit(kubectl, user, event(name)) == ""
        assert ONLY_THE_OPERATOR in submit(kubectl, ADA, {**event(name), "message": "by heidi"})


OPERATOR_MAY_NOT = "the operator may "


async def test_the_operators_rights_end_at_what_it_made(api_server: ApiServer, namespace: str) -> None:
    user = grant(api_server, namespace, (namespace,))
    kubectl = api_server.kubectl(namespace)
    # whatever else it may do, and kubectl reads what it patches
    kinds = "--resource=pods,secrets,deployments.apps"
    kubectl("create", "role", "more", "--verb=get,create,update,patch,delete", kinds)
    kubectl("create", "rolebinding", "more", "--role=more", f"--user={user}")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "theirs", "labels": {"app": "x"}, "annotations": {"a": "1"}},
        "spec": {"containers": [{"name": "a", "image": "a:1"}]},
    }
    kubectl.apply(pod)
    for name, labels in (("theirs", ""), ("ours", "app.kubernetes.io/managed-by=agentstream")):
        kubectl("create", "secret", "generic", name, "--from-literal=a=b")
        kubectl("create", "deployment", name, "--image=a:1")
        for kind in ("secret", "deployment") if labels else ():
            kubectl("label", kind, name, labels)

    def change(kind: str, name: str, patch: str) -> str:
        return said(kubectl, user, "patch", kind, name, "--type=merge", "-p", patch)

    image = '{"spec":{"containers":[{"name":"a","image":"evil:1"}]}}'
    await until(lambda: OPERATOR_MAY_NOT in change("pod", "theirs", image), timeout=20)
    cost = '{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"%s"}}}'
    for number in ("3", "4"):
        assert change("pod", "theirs", cost % number) == ""
    for patch in (
        '{"metadata":{"annotations":{"a":"2"}}}',
        '{"metadata":{"annotations":{"a":null}}}',
        '{"metadata":{"annotations":{"b":"2"}}}',
        '{"metadata":{"labels":{"app":"y"}}}',
        '{"metadata":{"labels":null}}',
        '{"metadata":{"finalizers":["example.com/x"]}}',
    ):
        assert OPERATOR_MAY_NOT in change("pod", "theirs", patch), patch
    assert OPERATOR_MAY_NOT in change("secret", "theirs", '{"data":{"a":"Yw=="}}')
    assert change("secret", "ours", '{"data":{"a":"Yw=="}}') == ""
    taken = '{"metadata":{"labels":{"app.kubernetes.io/managed-by":"agentstream"}}}'
    for kind in ("secret", "deployment"):
        assert OPERATOR_MAY_NOT in change(kind, "theirs", taken)
        assert OPERATOR_MAY_NOT in kubectl.fails("delete", kind, "theirs", "--as", user)
        kubectl("delete", kind, "ours", "--as", user)
    made = kubectl.fails("create", "secret", "generic", "new", "--from-literal=a=b", "--as", user)
    assert OPERATOR_MAY_NOT in made
    # others are not concerned
    kubectl("delete", "secret,deployment,pod", "theirs", "--force")
    kubectl.apply(a_stream())
