"""What deleting pods costs, on a real API server: said in steps, of pods that are there, and written once."""

from __future__ import annotations

from typing import Any

import pytest

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.pods import COST
from cluster.adapter import Adapter
from unit.resources.manifests import a_template


async def pods(adapter: Adapter, *names: str) -> None:
    """Makes pods of the group `coder`, and lets the adapter know of them."""
    labels = {"app.kubernetes.io/managed-by": "agentstream", "agentstream.dev/group": "coder"}
    spec = {"containers": [{"name": "coder", "image": "coder:1"}]}
    for name in names:
        adapter.team.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels, "finalizers": ["test.example/stay"]},
                "spec": spec,
            }
        )
    await adapter.listed()


def costs(adapter: Adapter) -> dict[str, str | None]:
    """What is said of each pod."""
    found = adapter.team.list("Pod")
    return {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get(COST) for pod in found}


async def test_only_what_changes_is_written(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b", "c")
    before = adapter.writes
    await adapter.cluster.set_deletion_costs(group, {"a": 4, "b": 1, "gone": 9})
    assert costs(adapter) == {"a": "3", "b": "1", "c": None}
    assert adapter.writes == before + 2
    await adapter.listed()
    await adapter.cluster.set_deletion_costs(group, {"a": 7})
    assert costs(adapter) == {"a": "3", "b": "0", "c": None}
    assert adapter.writes == before + 3


async def test_of_a_pod_that_leaves_nothing_is_said(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b")
    adapter.team.delete("Pod", "a")
    await adapter.listed()
    await adapter.cluster.set_deletion_costs(group, {"a": 1, "b": 1})
    assert costs(adapter) == {"a": None, "b": "1"}


async def test_what_a_template_says_stays(adapter: Adapter) -> None:
    template = {**a_template(), "metadata": {"annotations": {COST: "7"}}}
    await pods(adapter, "a")
    before = adapter.writes
    await adapter.cluster.set_deletion_costs(adapter.group(template=template), {"a": 1})
    await adapter.cluster.set_deletion_costs(adapter.group("other", deploymentRef={"name": "mine"}), {"a": 1})
    assert adapter.writes == before


async def test_a_pod_that_has_just_gone_is_nobodys_business(adapter: Adapter) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a", "b")
    adapter.team.change("Pod", "a", {"metadata": {"finalizers": None}})
    adapter.team.kubectl("delete", "pod", "a", "--force", "--grace-period=0")
    await adapter.cluster.set_deletion_costs(group, {"a": 1, "b": 1})
    assert costs(adapter) == {"b": "1"}


async def test_a_refusal_is_told_of(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    group = adapter.group(template=a_template())
    await pods(adapter, "a")

    async def forbid(*_: Any) -> None:
        raise ApiError(403, "pods is forbidden")

    monkeypatch.setattr(Api, "merge", forbid)
    with pytest.raises(ApiError, match="pods is forbidden"):
        await adapter.cluster.set_deletion_costs(group, {"a": 1})
