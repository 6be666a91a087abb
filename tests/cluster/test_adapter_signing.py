"""Secrets with signing keys on a real API server: a stream's own, and what its agents get of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from agentstream.protocol.signatures import SigningKey, encode_keys
from agentstream_operator.cluster.owned_objects import Change
from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterUnavailable,
    Credentials,
    Owner,
    SigningKeys,
)
from agentstream_operator.resources.meta import ResourceKey
from cluster.adapter import Adapter, adapter_of

NAME = "agentstream-signing.tasks"
OLD, NEW = SigningKey("old", "o" * 43, 1, 0), SigningKey("new", "n" * 43, 121, 1)


def stream_of(adapter: Adapter) -> ResourceKey:
    return ResourceKey("AgentStream", adapter.team.namespace, "tasks")


async def apply(adapter: Adapter, owner: Owner, *keys: SigningKey) -> SigningKeys:
    """Writes the keys of the stream. Returns what was to be written."""
    wanted = SigningKeys(stream_of(adapter), keys, owner.uid)
    await adapter.cluster.apply_signing_keys(wanted, owner)
    return wanted


async def test_keys_are_there_as_soon_as_they_are_written(adapter: Adapter) -> None:
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None
    owner = adapter.owner()
    wanted = await apply(adapter, owner, OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted
    wanted = await apply(adapter, owner, NEW, OLD)
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.signing_keys(stream_of(adapter)) == wanted


async def test_the_secret_belongs_to_its_stream_and_says_so(adapter: Adapter) -> None:
    owner = adapter.owner()
    await apply(adapter, owner, OLD)
    found = adapter.team.get("Secret", NAME)
    assert found is not None
    assert found["type"] == "agentstream.dev/signing-keys"
    assert found["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "agentstream",
        "agentstream.dev/stream": "tasks",
    }
    (reference,) = found["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("AgentStream", "tasks", owner.uid)
    assert base64.b64decode(found["data"]["keys"]).decode() == encode_keys((OLD,))


async def test_a_stream_that_is_made_again_takes_over_its_keys(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner(), OLD)
    other = Owner(stream_of(adapter), "another")
    wanted = await apply(adapter, other, OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted
    found = adapter.team.get("Secret", NAME)
    assert found is not None
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == ["another"]


async def test_a_secret_of_somebody_else_is_left_alone(adapter: Adapter) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}, "stringData": {"a": "b"}}
    adapter.team.create(body)
    with pytest.raises(ChildNotOurs, match=f"Secret {NAME} exists and was not created by AgentStream"):
        await apply(adapter, adapter.owner(), OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None


async def test_keys_that_were_made_unheard_are_taken_up_and_not_overwritten(adapter: Adapter) -> None:
    async with adapter_of(adapter.team) as other:
        owner = other.owner()
        wanted = await apply(other, owner, OLD)
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply(adapter, owner, NEW)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted


@pytest.mark.parametrize("data", [{"keys": "bm8="}, {"keys": "/w=="}, {"other": "bm8="}, None])
async def test_a_secret_without_readable_keys_has_none(adapter: Adapter, data: Mapping[str, str]) -> None:
    owner = adapter.owner()
    await apply(adapter, owner, OLD)
    adapter.team.change("Secret", NAME, {"data": {"keys": None, **(data or {})}})
    adapter.tell("Secret", NAME)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None
    wanted = await apply(adapter, owner, NEW)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted


async def test_a_change_of_the_keys_concerns_the_stream(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner(), OLD)
    found = adapter.team.get("Secret", NAME)
    assert found is not None
    wake = Change(stream=stream_of(adapter))
    found = {**found, "kind": "Secret"}
    assert adapter.owned.put(found) is None, "it was known"
    assert adapter.owned.remove(found) == wake
    found["metadata"]["resourceVersion"] += "0"
    assert adapter.owned.put(found) == wake


async def apply_agent(adapter: Adapter, owner: Owner, signing: Mapping[str, str]) -> Credentials:
    namespace = adapter.team.namespace
    uids = frozenset({owner.uid})
    wanted = Credentials(namespace, "coder", f"agentstream.{namespace}.coder", "secret", uids, signing)
    await adapter.cluster.apply_credentials(wanted, (owner,))
    return wanted


async def test_an_agents_secret_gets_keys_and_loses_them(adapter: Adapter) -> None:
    def keys(*found: SigningKey) -> str:
        return encode_keys(found)

    owner, namespace = adapter.owner(), adapter.team.namespace
    for signing in (
        {"tasks": keys(OLD)},
        {"tasks": keys(NEW, OLD), "orders": keys(OLD)},
        {"orders": keys(OLD)},
        {},
    ):
        wanted = await apply_agent(adapter, owner, signing)
        assert await adapter.cluster.credentials(namespace, "coder") == wanted
        found = adapter.team.get("Secret", "agentstream-coder")
        assert found is not None
        entries = {name for name in found["data"] if name.startswith("signing-")}
        assert entries == {f"signing-{stream}" for stream in signing}


async def test_an_entry_that_is_no_text_costs_no_password(adapter: Adapter) -> None:
    owner = adapter.owner()
    wanted = await apply_agent(adapter, owner, {"tasks": encode_keys((OLD,))})
    adapter.team.change("Secret", "agentstream-coder", {"data": {"signing-tasks": "/w=="}})
    adapter.tell("Secret", "agentstream-coder")
    found = await adapter.cluster.credentials(adapter.team.namespace, "coder")
    assert found is not None
    assert found != wanted
    assert found.password == "secret"
