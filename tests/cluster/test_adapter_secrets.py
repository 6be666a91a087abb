"""Secrets of agents and of signed streams on a real API server, and never somebody else's."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace

import pytest

from agentstream.protocol.signatures import SigningKey, encode_keys
from agentstream_operator.cluster.owned_objects import Change
from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterRefused,
    ClusterUnavailable,
    Credentials,
    Owner,
    SigningKeys,
)
from agentstream_operator.cluster.secret_contents import ServerAddress
from agentstream_operator.resources.meta import ResourceKey
from cluster.adapter import REDIS, Adapter, Json, adapter_of
from cluster.team import Team

SECRET, OTHER, OLDER = "secret" * 6, "other" * 7, "older" * 7
NAME = "agentstream-coder"
SECURE = ServerAddress("rediss://redis.example:6380", "redis.example", 6380, "-----BEGIN CERTIFICATE-----")


def credentials_of(adapter: Adapter, *owners: Owner, password: str = SECRET) -> Credentials:
    namespace = adapter.team.namespace
    uids = frozenset(owner.uid for owner in owners)
    return Credentials(namespace, "coder", f"agentstream.{namespace}.coder", password, uids)


async def apply(adapter: Adapter, *owners: Owner, password: str = SECRET) -> Credentials:
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
    assert entries(adapter.team)["password"] == SECRET


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
    adapter.team.change("Secret", NAME, {"stringData": {"password": OTHER}})
    with pytest.raises(ClusterUnavailable, match=f"Secret {adapter.team.namespace}/{NAME} was changed"):
        await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == OTHER
    found = await adapter.cluster.credentials(adapter.team.namespace, "coder")
    assert found == replace(wanted, password=OTHER)
    await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == SECRET


async def test_a_secret_that_was_made_unheard_is_taken_up(adapter: Adapter) -> None:
    async with adapter_of(adapter.team) as other:
        await apply(other, other.owner(), password=OLDER)
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply(adapter, adapter.owner())
    found = await adapter.cluster.credentials(adapter.team.namespace, "coder")
    assert found == credentials_of(adapter, adapter.owner(), password=OLDER)


async def test_a_secret_that_was_deleted_unheard_is_made_again_at_the_next_try(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    adapter.team.delete("Secret", NAME)
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply(adapter, adapter.owner())
    assert await adapter.cluster.credentials(adapter.team.namespace, "coder") is None
    await apply(adapter, adapter.owner())
    assert entries(adapter.team)["password"] == SECRET


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
        await apply(adapter, adapter.owner(), password=OTHER)
    assert entries(adapter.team)["password"] == SECRET


async def test_a_secret_that_may_not_be_changed_is_told_of(adapter: Adapter) -> None:
    await apply(adapter, adapter.owner())
    adapter.team.change("Secret", NAME, {"immutable": True})
    adapter.tell("Secret", NAME)
    with pytest.raises(ClusterRefused, match=f"the API server refused Secret {NAME}: .*field is immutable"):
        await apply(adapter, adapter.owner(), password=OTHER)


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


KEYS_NAME = "agentstream-signing.tasks"
OLD, NEW = SigningKey("old", "o" * 43, 1, 0), SigningKey("new", "n" * 43, 121, 1)


def stream_of(adapter: Adapter) -> ResourceKey:
    return ResourceKey("AgentStream", adapter.team.namespace, "tasks")


async def apply_keys(adapter: Adapter, owner: Owner, *keys: SigningKey) -> SigningKeys:
    """Writes the keys of the stream. Returns what was to be written."""
    wanted = SigningKeys(stream_of(adapter), keys, owner.uid)
    await adapter.cluster.apply_signing_keys(wanted, owner)
    return wanted


async def test_keys_are_there_as_soon_as_they_are_written(adapter: Adapter) -> None:
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None
    owner = adapter.owner()
    wanted = await apply_keys(adapter, owner, OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted
    wanted = await apply_keys(adapter, owner, NEW, OLD)
    async with adapter_of(adapter.team) as other:
        await other.listed()
        assert await other.cluster.signing_keys(stream_of(adapter)) == wanted


async def test_the_secret_belongs_to_its_stream_and_says_so(adapter: Adapter) -> None:
    owner = adapter.owner()
    await apply_keys(adapter, owner, OLD)
    found = adapter.team.get("Secret", KEYS_NAME)
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
    await apply_keys(adapter, adapter.owner(), OLD)
    other = Owner(stream_of(adapter), "another")
    wanted = await apply_keys(adapter, other, OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted
    found = adapter.team.get("Secret", KEYS_NAME)
    assert found is not None
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == ["another"]


async def test_a_secret_of_somebody_else_gets_no_keys(adapter: Adapter) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS_NAME}, "stringData": {"a": "b"}}
    adapter.team.create(body)
    with pytest.raises(ChildNotOurs, match=f"Secret {KEYS_NAME} exists and was not created by AgentStream"):
        await apply_keys(adapter, adapter.owner(), OLD)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None


async def test_keys_that_were_made_unheard_are_taken_up_and_not_overwritten(adapter: Adapter) -> None:
    async with adapter_of(adapter.team) as other:
        owner = other.owner()
        wanted = await apply_keys(other, owner, OLD)
    with pytest.raises(ClusterUnavailable, match="changed by another client"):
        await apply_keys(adapter, owner, NEW)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted


@pytest.mark.parametrize("data", [{"keys": "bm8="}, {"keys": "/w=="}, {OTHER: "bm8="}, None])
async def test_a_secret_without_readable_keys_has_none(adapter: Adapter, data: Mapping[str, str]) -> None:
    owner = adapter.owner()
    await apply_keys(adapter, owner, OLD)
    adapter.team.change("Secret", KEYS_NAME, {"data": {"keys": None, **(data or {})}})
    adapter.tell("Secret", KEYS_NAME)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) is None
    wanted = await apply_keys(adapter, owner, NEW)
    assert await adapter.cluster.signing_keys(stream_of(adapter)) == wanted


async def test_a_change_of_the_keys_concerns_the_stream(adapter: Adapter) -> None:
    await apply_keys(adapter, adapter.owner(), OLD)
    found = adapter.team.get("Secret", KEYS_NAME)
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
    wanted = Credentials(namespace, "coder", f"agentstream.{namespace}.coder", SECRET, uids, signing)
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
    assert found.password == SECRET
