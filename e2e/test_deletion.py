"""Deleting resources: what stays and what goes, by policy."""

from __future__ import annotations

from typing import Any

import pytest
from harness.chart import Installation
from harness.kubectl import Kubectl, in_effect
from harness.manifests import a_consumer, a_group, a_stream
from harness.redis import Redis
from harness.waiting import until


@pytest.fixture
def redis(installation: Installation) -> Redis:
    return installation.redis


def stream_key(kubectl: Kubectl) -> str:
    return f"{{{kubectl.namespace}.tasks}}"


def declare(kubectl: Kubectl, stream: dict[str, Any], group: dict[str, Any]) -> str:
    """Makes a stream with a group. Returns the stream's key."""
    kubectl.apply(stream, group)
    kubectl.ready("agentstream/tasks", "consumergroup/coder")
    return stream_key(kubectl)


def gone(kubectl: Kubectl, *what: str) -> bool:
    return kubectl.find(*what) is None


def groups(redis: Redis, key: str) -> list[str]:
    lines = redis("XINFO", "GROUPS", key)
    return [lines[i + 1] for i, line in enumerate(lines) if line == "name"]


def test_a_retained_stream_stays_with_everything_in_it(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks", producers=["boss"]), a_group("coder", "tasks"))
    redis("XADD", key, "*", "m", "{}")
    kubectl("delete", "consumergroup/coder", "agentstream/tasks")
    assert redis("XLEN", key) == ["1"]
    assert groups(redis, key) == ["coder"]


def test_what_was_retained_is_taken_up_again(kubectl: Kubectl, redis: Redis) -> None:
    stream, group = a_stream("tasks"), a_group("coder", "tasks")
    key = declare(kubectl, stream, group)
    redis("XADD", key, "*", "m", "{}")
    kubectl("delete", "consumergroup/coder", "agentstream/tasks")
    declare(kubectl, stream, group)
    until(lambda: kubectl.get("consumergroup", "coder")["status"].get("backlog") == 1)


def test_a_stream_to_delete_goes_with_all_that_belongs_to_it(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks", deletionPolicy="Delete"), a_group("coder", "tasks"))
    redis("XADD", key, "*", "m", "{}")
    kubectl("delete", "agentstream/tasks")
    assert redis("--scan", "--pattern", f"{key}*") == []
    until(lambda: not in_effect(kubectl.get("consumergroup", "coder")))


def test_an_empty_stream_goes_if_it_may_when_empty(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks", deletionPolicy="DeleteIfEmpty"), a_group("coder", "tasks"))
    kubectl("delete", "agentstream/tasks")
    assert not redis.exists(key)


def test_a_stream_that_is_not_empty_stays_and_an_event_says_so(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks", deletionPolicy="DeleteIfEmpty"), a_group("coder", "tasks"))
    redis("XADD", key, "*", "m", "{}")
    kubectl("delete", "agentstream/tasks")
    assert redis("XLEN", key) == ["1"]
    until(lambda: kubectl.events("RetainedNotEmpty", about="tasks"))


def test_a_retained_group_stays(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks"), a_group("coder", "tasks"))
    kubectl("delete", "consumergroup/coder")
    assert groups(redis, key) == ["coder"]


def test_a_group_to_delete_goes_with_its_retries(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks"), a_group("coder", "tasks", deletionPolicy="Delete"))
    redis("XADD", key, "*", "m", "{}")
    kubectl("delete", "consumergroup/coder")
    assert groups(redis, key) == []
    assert not redis.exists(f"{key}:retry:coder")
    assert redis("XLEN", key) == ["1"]


def test_the_policy_that_counts_is_the_last_one(kubectl: Kubectl, redis: Redis) -> None:
    key = declare(kubectl, a_stream("tasks"), a_group("coder", "tasks"))
    kubectl.patch("consumergroup/coder", {"spec": {"deletionPolicy": "Delete"}})
    kubectl.patch("agentstream/tasks", {"spec": {"deletionPolicy": "Delete"}})
    kubectl("delete", "consumergroup/coder")
    assert groups(redis, key) == []
    kubectl("delete", "agentstream/tasks")
    assert not redis.exists(key)


def test_pods_secret_and_user_go_with_the_group(kubectl: Kubectl, redis: Redis) -> None:
    declare(kubectl, a_stream("tasks"), a_group("coder", "tasks", template=a_consumer("tasks")))
    user = f"agentstream.{kubectl.namespace}.coder"
    until(lambda: kubectl.pods("coder"))
    assert user in redis.users()
    kubectl("delete", "consumergroup/coder")
    until(lambda: gone(kubectl, "deployment", "coder-consumer"))
    until(lambda: gone(kubectl, "secret", "agentstream-coder"))
    until(lambda: user not in redis.users(), 90)
    until(lambda: not kubectl.items("pods"))


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
def test_a_namespace_goes_with_everything_in_it(kubectl: Kubectl, redis: Redis, policy: str) -> None:
    key = declare(
        kubectl,
        a_stream("tasks", deletionPolicy=policy, producers=["boss"]),
        a_group("coder", "tasks", deletionPolicy=policy, template=a_consumer("tasks")),
    )
    kubectl("rollout", "status", "deployment/coder-consumer", "--timeout=60s", timeout=70)
    kubectl("delete", "namespace", kubectl.namespace, "--timeout=90s", timeout=100)
    assert redis.exists(key) is (policy == "Retain")
    until(lambda: not [user for user in redis.users() if f".{kubectl.namespace}." in user], 90)
