"""An agent's Secret: what it says, and how it is read again."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from agentstream_operator.cluster.labels import AGENT_LABEL, MANAGED_BY
from agentstream_operator.cluster.port import Credentials, Owner
from agentstream_operator.cluster.secret_contents import (
    ServerAddress,
    address_in,
    address_of,
    credentials_in,
    secret,
)
from support.resources import a_group, a_stream
from unit.cluster.objects import Json, a_secret

PLAIN = ServerAddress("redis://redis.example:6379", "redis.example", 6379)
SECURE = ServerAddress("rediss://redis.example:6380", "redis.example", 6380, "-----BEGIN CERTIFICATE-----")
OWNERS = (Owner(a_stream().key, "s"), Owner(a_group().key, "g"))
CREDENTIALS = Credentials("team", "coder", "agentstream.team.coder", "pässword" * 4, frozenset({"s", "g"}))


def made(server: ServerAddress = PLAIN) -> Json:
    """The Secret of the agent."""
    return secret(CREDENTIALS, OWNERS, server, "main")


def entries(found: Json) -> dict[str, str]:
    """What a Secret says."""
    return {name: base64.b64decode(value).decode() for name, value in found["data"].items()}


def test_a_secret_says_all_that_an_agent_needs() -> None:
    assert entries(made()) == {
        "type": "redis",
        "provider": "agentstream",
        "uri": "redis://redis.example:6379",
        "host": "redis.example",
        "port": "6379",
        "namespace": "team",
        "agent": "coder",
        "installation": "main",
        "username": "agentstream.team.coder",
        "password": "pässword" * 4,
    }


def test_an_agent_is_told_who_vouches_for_the_server() -> None:
    assert entries(made(SECURE)).items() >= {"ca.crt": SECURE.authority, "uri": SECURE.uri}.items()


def test_a_secret_belongs_to_every_resource_that_names_its_agent() -> None:
    metadata = made()["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("agentstream-coder", "team")
    assert metadata["labels"] == {MANAGED_BY: "agentstream", AGENT_LABEL: "coder"}
    assert metadata["ownerReferences"] == [
        {"apiVersion": "agentstream.dev/v1alpha1", "kind": "AgentStream", "name": "tasks", "uid": "s"},
        {"apiVersion": "agentstream.dev/v1alpha1", "kind": "ConsumerGroup", "name": "coder", "uid": "g"},
    ]


def test_what_was_written_is_read_again() -> None:
    assert credentials_in(made()) == CREDENTIALS
    for server in (PLAIN, SECURE):
        assert address_in(made(server)) == address_of(server)
    assert address_of(PLAIN) != address_of(SECURE)


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": {}},
        {"data": {"username": "YQ=="}},
        {"data": {"username": "YQ==", "password": ""}},
        {"data": {"username": "YQ==", "password": "a"}},
        # a password that somebody could guess, put there before the operator came
        {"data": {"username": "YQ==", "password": base64.b64encode(b"x" * 31).decode()}},
        # what is as large as a Secret may be is not kept in memory
        {"data": {"username": "YQ==", "password": base64.b64encode(b"x" * 1_025).decode()}},
        {"data": {"username": base64.b64encode(b"x" * 1_025).decode(), "password": "eHh4" * 11}},
        {"data": {"username": "YQ==", "password": None}},
        {"data": {"username": "YQ==", "password": "/w=="}},
    ],
)
def test_a_secret_that_lacks_what_an_agent_needs_says_nothing(change: dict[str, Any]) -> None:
    assert credentials_in({**a_secret(), **change}) is None


@pytest.mark.parametrize("labels", [{}, {MANAGED_BY: "agentstream"}, {AGENT_LABEL: "other"}])
def test_a_secret_that_is_not_named_after_its_agent_says_nothing(labels: dict[str, str]) -> None:
    assert credentials_in(a_secret(labels=labels)) is None


def test_of_entries_about_signatures_only_so_many_and_so_long_ones_are_kept() -> None:
    found = credentials_in(a_secret(**{"signing-long": "x" * 100_000, "signing-short": "{}"}))
    assert found is not None
    # written again, as it is not what an operator writes
    assert found.signing == {"long": "", "short": "{}"}
    found = credentials_in(a_secret(**{f"signing-{n}": "" for n in range(3_000)}))
    assert found is not None
    assert len(found.signing) == 2_000


def test_a_secret_without_entries_names_no_server() -> None:
    assert address_in({"metadata": {}}) not in {address_of(PLAIN), address_of(SECURE)}


def test_a_password_is_not_in_any_representation() -> None:
    assert CREDENTIALS.password not in repr(CREDENTIALS)
