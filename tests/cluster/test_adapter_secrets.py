"""Agents' Secrets on a real API server: made once, changed where they differ, and never somebody else's."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterRefused,
    ClusterUnavailable,
    Credentials,
    Owner,
)
from agentstream_operator.cluster.secret_contents import ServerAddress
from cluster.adapter import REDIS, Adapter, Json, adapter_of
from cluster.team import Team

NAME = "agentstream-coder"
SECURE = ServerAddress("rediss://redis.example:6380", "redis.example", 6380, "-----BEGIN CERTIFICATE-----")


def credentials_of(adapter: Adapter, *owners: Owner, password: str = "secret") -> Credentials:
    namespace = adapter.team.namespace
    uids = frozenset(owner.uid for owner in owners)
    return Credentials(namespace, "coder", f"agentstream.{namespace}.coder", password, uids)


async def apply(adapter: Adapter, *owners: Owner, password: str = "secret") -> Credentials:
    """Writes the agent's Secret. Returns what it was to say."""
    wanted = credentials_of(adapter, *owners, password=password)
    await adapter.cluster.apply_credentials(wanted, owners)
    return wanted


def entries(team: Team) -> dict[str, str]:
    """What the agent's Secret says."""
    found = team.get("Secret", NAME)
    assert found is not None
    return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


def foreign(**more: Json) -> Json:
    """A Secret of the same name that is somebody else's."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": NAME, **more},
        "stringData": {"a": "b"},
    }


async def test_a_secret_is_there_as_soon_as_it_is_written(adapter: Adapter) -> None:
    assert await adapter.cluster.credentials(adapter.team.namespace, "coder") is None
    wanted = await apply(adapter, adapter.owner())
    assert await adapter.cluster.credentials(adapter.team.namespace, "coder") == wanted
    assert entries(adapter.team)["password"] == "secret"


async def test_a_restarted_operator_knows_a_secret_by_the_list(adapter: Adapter) -> None:
    wanted = await apply(adapter, adapter.owner())
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.credentials(adapter.team.namespace, "coder") == wanted
        assert await other.cluster.users() == {wanted.username}


async def test_a_secret_with_another_user_is_nobodys(adapter: Adapter) -> None:
    edited = {"data": {"username": base64.b64encode(b"agentstream").decode()}}
    await apply(adapter, adapter.owner())
    adapter.team.change("Secret", NAME, edited)
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.users() == set()


async def test_a_secret_gets_its_owners_and_keeps_what_others_put_into_it(adapter: Adapter) -> None:
    stream, group = adapter.owner(), adapter.owner("ConsumerGroup", "coder")
    await apply(adapter, stream)
    adapter.team.change("Secret", NAME, {"stringData": {"note": "mine"}})
    adapter.tell("Secret", NAME)
    await apply(adapter, stream, group)
    found = adapter.team.get("Secret", NAME)
    assert found is not None
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [stream.uid, group.uid]
    assert entries(adapter.team)["note"] == "mine"


async def test_a_secret_that_changed_unheard_is_looked_at_before_it_is_written(adapter: Adapter) -> None:
    wanted = await apply(adapter, adapter.owner())
    adapter.team.change("Secret", NAME, {"stringData": {"password": "other"}})
    with pytest.raises(ClusterUnavailable, match=f"Secret {adapter.team.namespace}/{NAME} was changed"):
        await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == "other"
    found = await adapter.cluster.credentials(adapter.team.namespace, "coder")
    assert found == replace(wanted, password="other")
    await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == "secret"


async def test_a_secret_that_was_made_unheard_is_taken_up(adapter: Adapter) -> None:
    async with adapter_of(adapter.team) as other:
        await apply(other, other.owner(), password="older")
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply(adapter, adapter.owner())
    found = await adapter.cluster.credentials(adapter.team.namespace, "coder")
    assert found == credentials_of(adapter, adapter.owner(), password="older")


async def test_a_secret_that_was_deleted_unheard_is_made_again_at_the_next_try(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    adapter.team.delete("Secret", NAME)
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply(adapter, adapter.owner())
    assert await adapter.cluster.credentials(adapter.team.namespace, "coder") is None
    await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == "secret"


async def test_a_secret_of_somebody_else_is_left_alone(adapter: Adapter) -> None:
    adapter.team.create(foreign())
    with pytest.raises(
        ChildNotOurs, match=f"Secret {NAME} exists and was not created by AgentStream: rename or delete it"
    ):
        await apply(adapter, adapter.owner())
    await adapter.cluster.delete_credentials(adapter.team.namespace, "coder")
    assert entries(adapter.team) == {"a": "b"}


async def test_a_secret_that_somebody_took_over_is_left_alone(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    adapter.team.change("Secret", NAME, {"metadata": {"labels": None}})
    with pytest.raises(ChildNotOurs):
        await apply(adapter, adapter.owner(), password="other")
    assert entries(adapter.team)["password"] == "secret"


async def test_a_secret_that_may_not_be_changed_is_told_of(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    adapter.team.change("Secret", NAME, {"immutable": True})
    adapter.tell("Secret", NAME)
    with pytest.raises(ClusterRefused, match=f"the API server refused Secret {NAME}: .*field is immutable"):
        await apply(adapter, adapter.owner(), password="other")


async def test_a_secret_is_deleted_once(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    await adapter.cluster.delete_credentials(adapter.team.namespace, "coder")
    assert adapter.team.get("Secret", NAME) is None
    await adapter.cluster.delete_credentials(adapter.team.namespace, "coder")


async def test_in_a_namespace_that_ends_no_secret_is_made(adapter: Adapter) -> None:
    owner = adapter.owner()
    adapter.team.server.expect("DELETE", f"/api/v1/namespaces/{adapter.team.namespace}")
    await apply(adapter, owner)
    assert adapter.team.list("Secret") == []


@pytest.mark.parametrize(("before", "after"), [(REDIS, SECURE), (SECURE, REDIS)])
async def test_when_the_server_moves_secrets_are_written_again_once(
    own_team: Team, before: ServerAddress, after: ServerAddress
) -> None:
    async with adapter_of(own_team, before) as old:
        owner = old.owner()
        wanted = await apply(old, owner)
    async with adapter_of(own_team, after) as new:
        await new.listed()
        found = await new.cluster.credentials(own_team.namespace, "coder")
        # as if it had no owners: so it is written, with the password that it has
        assert found == replace(wanted, owners=frozenset())
        await apply(new, owner)
        assert await new.cluster.credentials(own_team.namespace, "coder") == wanted
    said = entries(own_team)
    assert (said["uri"], said.get("ca.crt")) == (after.uri, after.authority)
