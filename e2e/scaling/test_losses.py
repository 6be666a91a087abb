"""Consumers and servers that go while a group's consumers follow its backlog."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.chart import Installation
from harness.crew import Crew
from harness.kubectl import condition, in_effect
from harness.waiting import until

MOST = 10
FOLLOWING = {"minReplicas": 0, "maxReplicas": MOST, "targetBacklog": 100, "scaleDownAfter": "5s"}
HELD = 1_000

Tell = Callable[..., None]


def whole(crew: Crew) -> bool:
    resources = ("agentstream", "consumergroup")
    return all(in_effect(crew.kubectl.get(resource, crew.name)) for resource in resources)


def works_again(crew: Crew, tell: Tell, case: str, since: float) -> None:
    """Ends a case in which everything on the server went: a message is handled, and all is quiet again."""
    until(lambda: whole(crew), 90, despite_errors=True)
    tell(case, time.time() - since, "stream and group are back")
    # what was on the server is gone by definition
    crew.accepted.clear()
    number = crew.send()
    begun = crew.begun(number)
    tell(case, begun.at - crew.accepted[number], "one more message is read")
    crew.drained()
    crew.asleep(90)
    tell(case, time.time() - begun.at, "there are no consumers", crew.counts())


def test_a_consumer_with_many_messages_is_deleted_by_force(crew: Crew, tell: Tell) -> None:
    crew.declare(handlers=HELD, replicas=1)
    crew.reached(1)
    crew.send(HELD, stuck=3600)
    until(lambda: len(crew.notes("begun")) == HELD, despite_errors=True)
    (pod,) = crew.kubectl.pods(crew.name)
    crew.patch(replicas=3)
    crew.reached(3)
    until(lambda: len(crew.notes("started")) == 3)
    since = time.time()
    crew.kubectl("delete", "pod", pod, "--force", "--grace-period=0")

    def taken() -> bool:
        return not any(consumer.startswith(f"{pod}.") for consumer in crew.pending())

    until(taken, 60)
    owned = time.time() - since
    crew.drained()
    again = [note.at for note in crew.notes("begun") if note.who != pod]
    case = f"pod with {HELD:,} messages in hand deleted by force"
    tell(case, owned, "none is its own any more (3 s)")
    tell(case, min(again) - since, "others have begun the first (3 s)")
    tell(case, max(again) - since, "others have begun the last", crew.counts())
    assert not crew.counts().lost
    assert owned < 15


@pytest.mark.chaos
def test_the_server_forgets_everything_under_ten_consumers(
    installation: Installation, crew: Crew, tell: Tell
) -> None:
    crew.declare(autoscaling=FOLLOWING)
    crew.send(10_000, 0.05)
    crew.reached(MOST)
    until(lambda: {note.who for note in crew.notes("handled")} == set(crew.kubectl.pods(crew.name)))
    since = time.time()
    installation.redis("FLUSHALL")
    works_again(crew, tell, f"FLUSHALL under {MOST} consumers", since)


@pytest.mark.chaos
def test_the_server_is_away_and_comes_back_empty(installation: Installation, crew: Crew, tell: Tell) -> None:
    crew.declare(autoscaling=FOLLOWING)
    crew.send(10_000, 0.05)
    crew.reached(MOST)
    killed = installation.redis.run()
    # it does not answer, and has nothing when it starts again
    since = time.time()
    installation.cluster.on_node(installation.home, "pkill", "-STOP", "-x", "redis-server")
    try:

        def noticed() -> bool:
            group = crew.kubectl.get("consumergroup", crew.name)
            return bool(condition(group, "BackendReachable")["status"] == "False")

        until(noticed, 30)
        tell("server away while working", time.time() - since, "it is said; all consumers stay")
        installation.kubectl(
            *("exec", installation.redis.pod, "--container", "redis"),
            *("--", "sh", "-c", "rm -rf /data/appendonlydir /data/*.rdb"),
        )
        until(lambda: time.time() > since + 10)
        assert not [change for change in crew.changes(since) if change.wanted != MOST]
    finally:
        installation.cluster.on_node(installation.home, "pkill", "-KILL", "-x", "redis-server")
    back = time.time()
    until(lambda: installation.redis.run() != killed, 90, despite_errors=True)
    works_again(crew, tell, "server away, and back empty", back)
