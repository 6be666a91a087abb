"""What is known of Secrets, Deployments and pods, whatever the order in which it is told."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.cluster.labels import GROUP_LABEL, MANAGED_BY
from agentstream_operator.cluster.owned_objects import Change, OwnedObjects
from agentstream_operator.cluster.port import WorkloadSeen
from agentstream_operator.cluster.secret_contents import address_in
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.meta import ResourceKey
from unit.cluster.objects import ENDED, LOOPING, RUNNING, Json, a_deployment, a_pod, a_secret, container

CODER = ResourceKey("ConsumerGroup", "team", "coder")
OTHER = ResourceKey("ConsumerGroup", "team", "other")
AGENT = ("team", "coder")
SIDE = container("a-side", running={})


def owned_by(*found: Json) -> OwnedObjects:
    owned = OwnedObjects()
    for each in found:
        owned.put(each)
    return owned


def objects(owned: OwnedObjects) -> list[object]:
    """All that is known."""
    return [*owned.secrets.values(), *owned.deployments.values(), *owned.pods.values()]


@pytest.mark.parametrize("version", [6, 7])
@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod])
def test_what_is_not_newer_than_what_is_known_changes_nothing(make: Any, version: int) -> None:
    owned, newer = owned_by(make(7)), owned_by(make(7))
    assert owned.put(make(version)) is None
    assert objects(owned) == objects(newer)


@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod])
def test_the_end_of_one_does_not_take_its_successor_with_it(make: Any) -> None:
    owned = owned_by(make(9))
    assert owned.remove(make(8)) is None
    assert len(objects(owned)) == 1


@pytest.mark.parametrize("known", [(), (5,), (5, 7)])
@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod])
def test_the_answer_to_a_write_that_comes_after_the_end_does_not_bring_it_back(
    make: Any, known: tuple[int, ...]
) -> None:
    owned = owned_by(*map(make, known))
    owned.remove(make(8))
    assert owned.put(make(7)) is None
    assert objects(owned) == []
    owned.put(make(9))
    assert len(objects(owned)) == 1


def test_only_so_many_ends_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.cluster.owned_objects._ENDS", 2)
    owned = OwnedObjects()
    for name in ("a", "b", "c"):
        owned.remove(a_secret(8, name=name))
    for name in ("a", "b", "c"):
        owned.put(a_secret(7, name=name))
    assert [name for _, name in owned.secrets] == ["a"]


@pytest.mark.parametrize(
    ("make", "concerned"),
    [
        (a_secret, Change(agent=AGENT)),
        (a_deployment, Change(group=CODER)),
        (a_pod, Change(group=CODER, gone=Gone("a"), deleted=True)),
    ],
)
def test_who_depends_on_what_is_gone_is_concerned(make: Any, concerned: Change) -> None:
    owned = owned_by(make(1))
    assert owned.remove(make(2)) == concerned
    assert objects(owned) == []


@pytest.mark.parametrize(
    ("make", "concerned"),
    [(a_secret, Change(agent=AGENT)), (a_deployment, Change(group=CODER)), (a_pod, Change(group=CODER))],
)
def test_what_comes_back_is_taken_up_again(make: Any, concerned: Change) -> None:
    owned = owned_by(make(1))
    owned.remove(make(2))
    assert owned.put(make(3)) == concerned
    assert len(objects(owned)) == 1


@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod])
def test_what_lost_our_label_is_not_ours_any_more(make: Any) -> None:
    owned, bare = owned_by(make(1)), make(2)
    del bare["metadata"]["labels"][MANAGED_BY]
    assert owned.put(bare) is not None
    assert objects(owned) == []


@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod])
def test_what_was_never_ours_concerns_nobody(make: Any) -> None:
    owned, foreign = OwnedObjects(), make(1)
    foreign["metadata"]["labels"] = None
    assert owned.put(foreign) is None
    assert objects(owned) == []


def test_a_secret_tells_how_the_agent_logs_in_and_where() -> None:
    seen = owned_by(a_secret()).secrets["team", "agentstream-coder"]
    assert seen.credentials is not None
    assert (seen.credentials.username, seen.credentials.password) == ("agentstream.team.coder", "secret" * 6)
    assert seen.address == address_in(a_secret())


@pytest.mark.parametrize(
    ("entry", "concerned"),
    [("password", Change(agent=AGENT)), ("uri", Change(agent=AGENT)), ("note", None)],
)
def test_an_agent_is_concerned_by_what_it_reads_of_its_secret(entry: str, concerned: Change | None) -> None:
    owned = owned_by(a_secret(1))
    assert owned.put(a_secret(2, **{entry: "other"})) == concerned
    assert owned.secrets["team", "agentstream-coder"].version == 2


def an_autoscaler(version: int = 1) -> Json:
    """The autoscaler of the group `coder`."""
    metadata = {**a_deployment(version)["metadata"]}
    return {"kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": {"maxReplicas": 3}}


@pytest.mark.parametrize("make", [a_secret, a_deployment, a_pod, an_autoscaler])
def test_whatever_one_of_them_has_the_others_are_read(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    spoilt = {**make(2), "metadata": {**make(2)["metadata"], "annotations": 1}, "data": 1, "spec": [{1}]}
    owned = owned_by(make(1), spoilt)
    assert owned.versions(spoilt["kind"]) in ({}, {("team", spoilt["metadata"]["name"]): 2})
    for kind in (a_secret, a_deployment, a_pod):
        owned.put(kind(3))
    assert len(objects(owned)) == 3


def test_a_secret_that_names_no_agent_concerns_nobody() -> None:
    assert OwnedObjects().put(a_secret(labels={MANAGED_BY: "agentstream"})) is None


def test_a_deployment_shows_how_many_are_wanted_and_ready() -> None:
    owned = owned_by(a_deployment(replicas=3, status={"readyReplicas": 2}))
    assert owned.workload(CODER, current=True) == WorkloadSeen(3, 2, None, current=True)
    assert owned.workload(CODER, current=False) == WorkloadSeen(3, 2, None, current=False)
    assert owned.workload(OTHER, current=True) is None


def test_a_deployment_that_says_nothing_of_replicas_wants_one() -> None:
    owned = owned_by(a_deployment(replicas=None))
    assert owned.workload(CODER, current=True) == WorkloadSeen(1, 0)


def test_a_deployment_without_a_group_is_known_and_concerns_nobody() -> None:
    owned, bare = OwnedObjects(), a_deployment(labels={MANAGED_BY: "agentstream"})
    assert owned.put(bare) is None
    assert owned.deployment(CODER) is not None
    assert owned.remove(bare) is None
    assert owned.deployment(CODER) is None


def entry(manager: str, *fields: str, subresource: str | None = None) -> Json:
    """Who owns which fields."""
    found = {"manager": manager, "fieldsV1": {field: {} for field in fields}}
    return found if subresource is None else {**found, "subresource": subresource}


@pytest.mark.parametrize(
    ("fields", "edited"),
    [
        ([], False),
        ([entry("agentstream", "f:spec", "f:metadata")], False),
        ([entry("kube-controller-manager", "f:metadata")], False),
        ([entry("kube-controller-manager", "f:status", subresource="status")], False),
        ([entry("kubectl", "f:spec", subresource="scale")], False),
        ([{"manager": "old"}], False),
        ([entry("agentstream", "f:spec"), entry("kubectl-edit", "f:spec")], True),
        ([entry("kubectl-rollout", "f:spec")], True),
    ],
)
def test_a_deployment_is_edited_if_somebody_else_owns_a_part_of_its_spec(
    fields: list[Json], *, edited: bool
) -> None:
    seen = owned_by(a_deployment(managedFields=fields)).deployment(CODER)
    assert seen is not None
    assert seen.edited is edited


QUOTA = 'pods "coder-consumer-5f-x" is forbidden: exceeded quota: small'


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ({"type": "ReplicaFailure", "status": "True", "message": QUOTA}, QUOTA),
        ({"type": "ReplicaFailure", "status": "True", "message": "x" * 1000}, "x" * 300),
        ({"type": "ReplicaFailure", "status": "True"}, "cannot create pods"),
        ({"type": "ReplicaFailure", "status": "False", "message": QUOTA}, None),
        ({"type": "Available", "status": "False", "message": "no"}, None),
    ],
)
def test_pods_that_cannot_be_made_are_told_of(condition: Json, why: str | None) -> None:
    workload = owned_by(a_deployment(status={"conditions": [condition]})).workload(CODER, current=True)
    assert workload is not None
    assert workload.crashing == why


PULLING = container(waiting={"reason": "ImagePullBackOff", "message": 'Back-off pulling image "coder:2"'})
CREATING = container(waiting={"reason": "ContainerCreating"})


@pytest.mark.parametrize(
    ("status", "down", "stuck"),
    [
        # scheduled nowhere yet, or just now
        ({"phase": "Pending"}, False, None),
        ({"phase": "Pending", "containerStatuses": [CREATING]}, False, None),
        ({"containerStatuses": [RUNNING]}, False, None),
        # statuses are in the order of names, and the agent is the first container
        ({"containerStatuses": [container("a-side", terminated={"exitCode": 1}), RUNNING]}, False, None),
        ({"containerStatuses": [SIDE, ENDED]}, True, None),
        ({"containerStatuses": [container(terminated={"exitCode": 0, "reason": "Completed"})]}, True, None),
        # evicted pods, and those of a node that is shut down, show no containers
        ({"phase": "Failed", "reason": "Evicted"}, True, None),
        ({"phase": "Failed", "containerStatuses": [RUNNING]}, True, None),
        ({"phase": "Succeeded", "containerStatuses": [ENDED]}, True, None),
        ({"containerStatuses": [LOOPING]}, True, "a: CrashLoopBackOff: exit code 3"),
        (
            {
                "containerStatuses": [
                    container(
                        waiting={"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"},
                        last={"exitCode": 137, "reason": "OOMKilled"},
                    )
                ]
            },
            True,
            "a: CrashLoopBackOff: exit code 137 (OOMKilled)",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        waiting={"reason": "CrashLoopBackOff"},
                        last={"exitCode": 1, "reason": "Error", "message": "loading\nno model\n"},
                    )
                ]
            },
            True,
            "a: CrashLoopBackOff: exit code 1 (no model)",
        ),
        (
            {"containerStatuses": [container(waiting={"reason": "CrashLoopBackOff"})]},
            True,
            "a: CrashLoopBackOff",
        ),
        (
            {"phase": "Pending", "containerStatuses": [PULLING]},
            False,
            'a: ImagePullBackOff: Back-off pulling image "coder:2"',
        ),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    container(
                        waiting={"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}
                    )
                ],
            },
            False,
            'a: CreateContainerConfigError: secret "s" not found',
        ),
        (
            {"containerStatuses": [container(waiting={"reason": "ErrImagePull"}, last={"exitCode": 1})]},
            True,
            "a: ErrImagePull",
        ),
        (
            {
                "phase": "Pending",
                "initContainerStatuses": [
                    container("done", terminated={"exitCode": 0, "reason": "Completed"}),
                    container("fetch", waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 2}),
                ],
                "containerStatuses": [container(waiting={"reason": "PodInitializing"})],
            },
            False,
            "a: CrashLoopBackOff: exit code 2",
        ),
        # a side container's trouble is its own
        (
            {"containerStatuses": [container("a-side", waiting={"reason": "ErrImagePull"}), RUNNING]},
            False,
            None,
        ),
    ],
)
def test_a_pod_shows_whether_it_is_down_and_why_it_does_not_start(
    status: Json, *, down: bool, stuck: str | None
) -> None:
    seen = owned_by(a_pod(**status)).pods["team", "a"]
    assert (seen.down, seen.stuck) == (down, stuck)


def test_a_pod_whose_containers_are_not_named_is_judged_by_the_first_status() -> None:
    pod = a_pod(containerStatuses=[ENDED])
    pod["spec"] = {}
    assert owned_by(pod).pods["team", "a"].down


def test_a_pod_goes_down_once_and_comes_up_again() -> None:
    owned = OwnedObjects()
    told = [
        owned.put(a_pod(version, containerStatuses=[state]))
        for version, state in enumerate((CREATING, RUNNING, RUNNING, ENDED, LOOPING, RUNNING, LOOPING), 1)
    ]
    assert told == [
        Change(group=CODER),
        None,
        None,
        Change(group=CODER, gone=Gone("a")),
        # why it does not start is new
        Change(group=CODER),
        Change(group=CODER),
        Change(group=CODER, gone=Gone("a")),
    ]


def test_a_pod_that_is_down_when_it_is_first_seen_has_gone() -> None:
    assert OwnedObjects().put(a_pod(phase="Failed")) == Change(group=CODER, gone=Gone("a"))


def test_pods_are_alive_unless_they_are_down_or_gone() -> None:
    owned = owned_by(
        a_pod(1, "a", containerStatuses=[RUNNING]),
        a_pod(1, "b", containerStatuses=[ENDED]),
        a_pod(1, "c", phase="Pending"),
        a_pod(1, "d"),
        a_pod(1, "e", group="other"),
    )
    owned.remove(a_pod(2, "d"))
    assert set(owned.alive(CODER)) == {"a", "c"}
    assert set(owned.alive(OTHER)) == {"e"}
    assert owned.alive(ResourceKey("ConsumerGroup", "team", "ghost")) == {}


def test_a_pod_that_is_gone_and_was_not_known_concerns_nobody() -> None:
    assert OwnedObjects().remove(a_pod()) is None


def test_a_pod_without_a_group_concerns_nobody() -> None:
    owned = owned_by(a_pod(group=None))
    assert not owned.pods


def test_a_pod_that_was_let_go_from_its_group_still_counts_as_alive() -> None:
    # as one does to look at it in peace: it still has its messages
    owned = owned_by(a_pod(1, containerStatuses=[RUNNING]))
    assert owned.put(a_pod(2, group=None, containerStatuses=[RUNNING])) is None
    assert set(owned.alive(CODER)) == {"a"}
    assert owned.remove(a_pod(3, group=None)) == Change(group=CODER, gone=Gone("a"), deleted=True)


def test_a_pod_that_was_given_to_another_group_belongs_to_that() -> None:
    owned = owned_by(a_pod(1, containerStatuses=[RUNNING]))
    assert owned.put(a_pod(2, group="other", containerStatuses=[RUNNING])) == Change(group=OTHER)
    assert (set(owned.alive(CODER)), set(owned.alive(OTHER))) == (set(), {"a"})
    assert owned.remove(a_pod(3, group="other")) == Change(group=OTHER, gone=Gone("a"), deleted=True)
    assert owned.alive(CODER) == owned.alive(OTHER) == {}


def test_a_workload_tells_of_the_first_of_its_pods_that_does_not_start() -> None:
    owned = owned_by(
        a_deployment(replicas=3),
        a_pod(1, "c", containerStatuses=[LOOPING]),
        a_pod(1, "b", containerStatuses=[PULLING]),
        a_pod(1, "a", containerStatuses=[RUNNING]),
    )
    workload = owned.workload(CODER, current=True)
    assert workload is not None
    assert workload.crashing == 'b: ImagePullBackOff: Back-off pulling image "coder:2"'


def test_pods_that_cannot_be_made_come_before_those_that_do_not_start() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": QUOTA}
    owned = owned_by(a_deployment(status={"conditions": [failure]}), a_pod(1, containerStatuses=[LOOPING]))
    workload = owned.workload(CODER, current=True)
    assert workload is not None
    assert workload.crashing == QUOTA


def test_why_a_pod_does_not_start_is_told_in_few_words() -> None:
    wordy = container(waiting={"reason": "ErrImagePull", "message": "x" * 1000})
    stuck = owned_by(a_pod(containerStatuses=[wordy])).pods["team", "a"].stuck
    assert stuck is not None
    assert len(stuck) == 300


def test_labels_name_the_group_of_a_namespace() -> None:
    pod = a_pod()
    pod["metadata"]["labels"][GROUP_LABEL] = "other"
    assert set(owned_by(pod).alive(OTHER)) == {"a"}
