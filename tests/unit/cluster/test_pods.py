"""Consumers' pods: their names, when their processes have ended, and what deleting them costs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from agentstream_operator.cluster.pods import COST, PodSeen, deletion_cost, has_deletion_cost, read_pod
from agentstream_operator.cluster.port import Pods
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.meta import ResourceKey
from unit.cluster.objects import Json, a_pod, container

CODER = ResourceKey("ConsumerGroup", "team", "coder")
NEW_YEAR = 1_767_225_600_000
"""The beginning of the year 2026."""


def at(second: int) -> str:
    """A time as the API server has it."""
    return f"2026-01-01T00:00:{second:02}Z"


def running(second: int, last: Json | None = None) -> Json:
    """A container that runs since then."""
    return container(running={"startedAt": at(second)}, last=last)


def ended(second: int, **more: Any) -> Json:
    """How a container ended then."""
    return {"exitCode": 1, "finishedAt": at(second), **more}


def looping(second: int) -> Json:
    """A container that ended then, and is not started again for now."""
    return container(waiting={"reason": "CrashLoopBackOff"}, last=ended(second))


CREATING = container(waiting={"reason": "ContainerCreating"})
EVICTED: Json = {"phase": "Failed", "reason": "Evicted"}


def of(*states: Json) -> Json:
    """The status of a pod with these containers."""
    return {"containerStatuses": list(states)}


@pytest.mark.parametrize(
    ("course", "gone"),
    [
        ([of(CREATING), of(running(1)), of(running(1))], [None, None, None]),
        # whoever started in the second in which it ended may be the next one
        ([of(running(1)), of(container(terminated=ended(5)))], [None, Gone("a", NEW_YEAR + 5000)]),
        # unless that has to wait
        ([of(running(1)), of(looping(5))], [None, Gone("a", NEW_YEAR + 6000)]),
        # told of once, and who may have been the next one when it was known that it is not
        (
            [of(container(terminated=ended(5)))] * 2 + [of(looping(5))] * 2 + [of(running(9, ended(5)))] * 2,
            [
                Gone("a", NEW_YEAR + 5000),
                None,
                Gone("a", NEW_YEAR + 6000),
                None,
                Gone("a", NEW_YEAR + 9000),
                None,
            ],
        ),
        (
            [of(container(terminated=ended(5))), of(running(5, ended(5)))],
            [Gone("a", NEW_YEAR + 5000), None],
        ),
        # started again before anybody heard of its end
        ([of(running(1)), of(running(7, ended(5)))], [None, Gone("a", NEW_YEAR + 7000)]),
        # also unseen, as while nobody looked
        ([of(running(7, ended(5)))] * 2, [Gone("a", NEW_YEAR + 7000), None]),
        ([of(CREATING), of(running(7, ended(5)))], [None, Gone("a", NEW_YEAR + 7000)]),
        # it cannot be started again: its image is gone meanwhile
        (
            [of(running(1)), of(container(waiting={"reason": "ErrImagePull"}, last=ended(5)))],
            [None, Gone("a", NEW_YEAR + 5000)],
        ),
        # a kubelet that does not say when
        ([of(running(1)), of(container(terminated={"exitCode": 1}))], [None, Gone("a")]),
        ([of(container(running={})), of(container(running={}))], [None, None]),
        ([of(running(1)), EVICTED, EVICTED], [None, Gone("a"), None]),
        ([of(running(1)), of(looping(5)), EVICTED], [None, Gone("a", NEW_YEAR + 6000), Gone("a")]),
        ([EVICTED], [Gone("a")]),
    ],
)
def test_processes_end_once(course: list[Json], gone: list[Gone | None]) -> None:
    seen = [None, *(read_pod(a_pod(version, **status), CODER) for version, status in enumerate(course, 1))]
    found = [after.ended("a", before) for before, after in pairwise(seen) if after is not None]
    assert found == gone


def test_a_pod_shows_that_it_leaves_and_what_deleting_it_costs() -> None:
    pod = a_pod(7)
    assert read_pod(pod, CODER) == PodSeen(7, CODER)
    pod["metadata"] |= {"deletionTimestamp": at(1), "annotations": {COST: "3"}}
    assert read_pod(pod, CODER) == PodSeen(7, CODER, leaving=True, cost="3")


def test_what_deleting_it_costs_tells_nothing_of_the_consumers() -> None:
    assert not PodSeen(2, CODER, cost="3", leaving=True, since=1).tells(PodSeen(1, CODER))
    assert PodSeen(2, CODER, down=True).tells(PodSeen(1, CODER))


@pytest.mark.parametrize(("held", "cost"), [(0, "0"), (1, "1"), (2, "2"), (3, "2"), (4, "3"), (1000, "10")])
def test_the_cost_grows_by_one_as_what_is_held_doubles(held: int, cost: str) -> None:
    assert deletion_cost(held) == cost


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({}, False),
        ({"metadata": {}}, False),
        ({"metadata": {"annotations": None}}, False),
        ({"metadata": {"annotations": {"other": "1"}}}, False),
        ({"metadata": {"annotations": {COST: "1"}}}, True),
    ],
)
def test_a_template_may_say_itself_what_its_pods_cost(template: Json, *, says: bool) -> None:
    assert has_deletion_cost(template) is says


PODS = Pods("coder-consumer-", frozenset({"coder-consumer-5f4d-abcde"}))


@pytest.mark.parametrize(
    ("pod", "lost"),
    [
        ("coder-consumer-5f4d-vwxyz", True),
        # of an older template
        ("coder-consumer-9c8b-abcde", True),
        ("coder-consumer-5f4d-abcde", False),
        # of other groups: coder-consumer, and my-coder
        ("coder-consumer-consumer-5f4d-abcde", False),
        ("my-coder-consumer-5f4d-abcde", False),
        # of agents that run elsewhere
        ("coder-consumer-laptop", False),
        ("coder-consumer-", False),
        ("coder", False),
        ("", False),
    ],
)
def test_a_lost_pod_is_named_like_the_groups_and_not_alive(pod: str, *, lost: bool) -> None:
    assert PODS.has_lost(pod) is lost
