"""`helm --wait` on charts of a user's own with our resources: Helm 4 judges them by the rules of kstatus."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.team import Json, Team, said
from cluster.test_operator_pods import Group
from support.helm import HELMS, Helm, Refused
from support.kstatus import kstatus
from support.kubectl import Kubectl
from support.servers import Server
from unit.resources.manifests import a_group, a_stream, a_template

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
LONG = "60s"


class UsersRelease:
    """A release of a chart that consists of these resources.

    Args:
        team: where.
        name: of the release.
        directory: where the chart is made.
    """

    def __init__(self, team: Team, name: str, directory: Path) -> None:
        self.team, self.name, self.chart = team, name, directory / "chart"
        (self.chart / "templates").mkdir(parents=True)
        (self.chart / "Chart.yaml").write_text(
            json.dumps({"apiVersion": "v2", "name": name, "version": "0.1.0"})
        )

    def run(self, command: str, *arguments: str, resources: tuple[Json, ...] = ()) -> None:
        """Runs a command of helm 4 that waits.

        Raises:
            Refused: it failed.
        """
        text = "\n---\n".join(map(json.dumps, resources))
        (self.chart / "templates" / "team.yaml").write_text(text)
        where = ("--namespace", self.team.namespace)
        chart = (str(self.chart), "--wait") if command != "uninstall" else ()
        Helm(4).run(command, self.name, *chart, *arguments, *where, kubeconfig=self.team.server.kubeconfig)


def resources(name: str, contracts: tuple[Json, ...] = (), **group: Any) -> tuple[Json, ...]:
    """A stream and its group."""
    return a_stream(name, contracts=list(contracts)), a_group(name, streamRef={"name": name}, **group)


@pytest.fixture
def users_release(team: Team, unique: str, tmp_path: Path) -> UsersRelease:
    """A release where an operator works."""
    return UsersRelease(team, unique, tmp_path)


async def test_an_installation_is_done_when_the_resources_are_in_effect(
    users_release: UsersRelease, team: Team, unique: str
) -> None:
    await asyncio.to_thread(users_release.run, "install", "--timeout", LONG, resources=resources(unique))
    for kind in ("AgentStream", "ConsumerGroup"):
        assert said(team.get(kind, unique)) == ("True", "Ready", "")
    await asyncio.to_thread(users_release.run, "uninstall")


def test_without_an_operator_it_is_not_done(own_team: Team, tmp_path: Path) -> None:
    release = UsersRelease(own_team, "lonely", tmp_path)
    with pytest.raises(Refused, match="context deadline exceeded"):
        release.run("install", "--timeout", "4s", resources=resources("lonely"))
    for kind in ("AgentStream", "ConsumerGroup"):
        found = own_team.get(kind, "lonely")
        assert found is not None
        assert kstatus(found) == "InProgress"
        assert found["status"] == {"observedGeneration": -1}


async def test_an_upgrade_that_repairs_consumers_is_not_undone(
    users_release: UsersRelease, team: Team, unique: str, shared_broker: Server
) -> None:
    declared = resources(unique, template=a_template())
    await asyncio.to_thread(users_release.run, "install", "--timeout", LONG, resources=declared)
    with shared_broker.admin() as client:
        group = Group(team, unique, client)
        group.pod("aaaaa", **group.loops())
    await team.says("ConsumerGroup", unique, "False", "CrashLoop", "Consuming")
    repaired = resources(unique, template=a_template(image="coder:2"))
    arguments = ("--rollback-on-failure", "--timeout", LONG)
    await asyncio.to_thread(users_release.run, "upgrade", *arguments, resources=repaired)
    found = team.get("ConsumerGroup", unique)
    assert found is not None
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "coder:2"
    # still they crash, and that is no matter of the upgrade
    assert said(found, "Consuming")[:2] == ("False", "CrashLoop")
    assert kstatus(found) == "Current"
    await asyncio.to_thread(users_release.run, "uninstall")


async def test_what_only_a_change_can_mend_fails_at_once_and_is_undone(
    users_release: UsersRelease, team: Team, unique: str
) -> None:
    good = resources(unique, contracts=({"type": "event", "schema": SCHEMA},))
    await asyncio.to_thread(users_release.run, "install", "--timeout", LONG, resources=good)
    wrong = {"type": "event", "schema": {"type": "object", "properties": {"n": {"type": "whole"}}}}
    since = time.monotonic()
    with pytest.raises(Refused, match="is not a valid JSON Schema"):
        await asyncio.to_thread(
            users_release.run, "upgrade", "--timeout", LONG, resources=resources(unique, contracts=(wrong,))
        )
    assert time.monotonic() - since < 30
    found = team.get("AgentStream", unique)
    assert found is not None
    assert kstatus(found) == "Failed"
    await asyncio.to_thread(users_release.run, "upgrade", "--timeout", LONG, resources=good)
    assert said(team.get("AgentStream", unique), "Stalled") == ("", "", "")
    await asyncio.to_thread(users_release.run, "uninstall")


UNCHANGED = {
    "the smallest": (a_stream(), a_group()),
    "contracts without a version": (
        a_stream(contracts=[{"type": "event", "schema": SCHEMA}, {"type": "task_request", "schema": SCHEMA}]),
    ),
    "everything that has defaults": (
        a_stream(signing={"policy": "Require"}, retention={}, producers=["boss"]),
        a_group(template=a_template(env=[{"name": "A"}]), autoscaling={}, delivery={}, deadLetter={}),
    ),
}


@pytest.mark.parametrize("how", [(), ("--server-side",)], ids=["client side", "server side"])
@pytest.mark.parametrize("what", UNCHANGED)
def test_what_is_applied_again_unchanged_stays_so(kubectl: Kubectl, what: str, how: tuple[str, ...]) -> None:
    manifests = list(UNCHANGED[what])

    def applied() -> tuple[str, list[Json]]:
        told = kubectl("apply", "-f", "-", *how, manifest=manifests)
        return told, [kubectl.get(m["kind"].lower(), m["metadata"]["name"]) for m in manifests]

    _, first = applied()
    told, second = applied()
    assert [found["metadata"]["generation"] for found in second] == [1] * len(manifests)
    assert [found["spec"] for found in second] == [found["spec"] for found in first]
    # the API server may store the default of the status once
    assert applied() == (told, second)
    if not how:
        assert told.count("unchanged") == len(manifests), told


@pytest.mark.parametrize("helm", HELMS, ids=lambda helm: f"helm{helm.major}")
def test_an_upgrade_without_a_change_writes_nothing(own_team: Team, tmp_path: Path, helm: Helm) -> None:
    release = UsersRelease(own_team, "same", tmp_path)
    (release.chart / "templates" / "team.yaml").write_text(
        "\n---\n".join(map(json.dumps, (*UNCHANGED["contracts without a version"], a_group())))
    )
    where = ("--namespace", own_team.namespace)

    def run(command: str) -> list[Any]:
        helm.run(command, "same", str(release.chart), *where, kubeconfig=own_team.server.kubeconfig)
        return own_team.list("AgentStream") + own_team.list("ConsumerGroup")

    first = run("install")
    assert first
    assert [found["metadata"]["generation"] for found in run("upgrade")] == [1] * len(first)
