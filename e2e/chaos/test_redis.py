"""The server killed, emptied, or robbed of its users: messages flow again, and what is lost is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.chart import Installation
from harness.kubectl import condition, in_effect
from harness.ledger import Counts
from harness.load import Load
from harness.waiting import until

pytestmark = pytest.mark.chaos

Settle = Callable[..., Counts]


def delete_the_pod(installation: Installation) -> None:
    installation.kubectl("delete", "pod", installation.redis.pod, "--force", "--grace-period=0")


def kill_the_process(installation: Installation) -> None:
    installation.cluster.on_node(installation.home, "pkill", "-KILL", "-x", "redis-server")


@pytest.mark.parametrize(
    ("case", "kill"),
    [
        pytest.param("Redis pod deleted by force", delete_the_pod, id="pod", marks=pytest.mark.ci),
        pytest.param("Redis killed (SIGKILL)", kill_the_process, id="process"),
    ],
)
def test_the_server_is_killed(
    installation: Installation,
    load: Load,
    settle: Settle,
    case: str,
    kill: Callable[[Installation], None],
) -> None:
    killed, since = installation.redis.run(), load.now()
    kill(installation)
    until(lambda: installation.redis.run() != killed, 90, despite_errors=True)
    seconds = load.resumed(load.now()) - since
    counts = settle(case, seconds, "messages flow again")
    assert not counts.lost
    assert not counts.refused
    assert seconds < 30


def test_the_server_forgets_everything(installation: Installation, load: Load, settle: Settle) -> None:
    # it can only tell what it has seen
    until(lambda: load.kubectl.get("agentstream", "numbers")["status"].get("length"))
    since = load.now()
    installation.redis("FLUSHALL")

    def whole() -> bool:
        resources = load.kubectl.items("agentstreams,consumergroups")
        said = load.kubectl.events("DataLost")
        return bool(said) and all(map(in_effect, resources))

    until(whole, 60)
    again = load.now()
    seconds = load.resumed(again) - since
    # what was on the server is gone by definition
    counts = settle("FLUSHALL", seconds, "streams, groups and routes are back, messages flow", again)
    assert counts.sent
    assert not counts.lost
    assert seconds < 60


def test_the_servers_users_vanish(installation: Installation, load: Load, settle: Settle) -> None:
    users = installation.redis.users()
    assert f"agentstream.{load.namespace}.worker" in users
    since = load.now()
    installation.redis("ACL", "DELUSER", *users)
    seconds = load.resumed(load.now()) - since
    until(lambda: set(installation.redis.users()) >= set(users), 60)
    counts = settle("all ACL users deleted", seconds, "messages flow again")
    assert not counts.lost
    group = load.kubectl.get("consumergroup", "worker")
    assert condition(group, "CredentialsSynced")["status"] == "True"
    assert seconds < 60
