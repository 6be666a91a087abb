"""Reads and writes the Secrets of agents and of signing keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from agentstream.protocol.keys import user_name
from agentstream.protocol.signatures import entry_name
from agentstream_operator.cluster.api import Api, ApiError, raise_refusal
from agentstream_operator.cluster.kinds import SECRETS
from agentstream_operator.cluster.labels import is_ours, secret_name, signing_secret_name
from agentstream_operator.cluster.owned_objects import OwnedObjects
from agentstream_operator.cluster.port import (
    ChildNotOurs,
    ClusterUnavailable,
    Credentials,
    Owner,
    SigningKeys,
)
from agentstream_operator.cluster.secret_contents import (
    AUTHORITY,
    ServerAddress,
    address_of,
    secret,
    signing_secret,
)
from agentstream_operator.resources.meta import ResourceKey


class Secrets:
    """Reads and writes the Secrets of an installation, with the server's address for agents."""

    def __init__(self, api: Api, owned: OwnedObjects, server: ServerAddress, installation: str) -> None:
        self._api = api
        self._owned = owned
        self._server = server
        self._address = address_of(server)
        self._installation = installation

    async def credentials(self, namespace: str, agent: str) -> Credentials | None:
        """Returns the agent's Secret; without owners, so that it is rewritten, if it names another server."""
        seen = self._owned.secrets.get((namespace, secret_name(agent)))
        if seen is None or seen.credentials is None:
            return None
        return (
            seen.credentials
            if seen.address == self._address
            else replace(seen.credentials, owners=frozenset())
        )

    async def users(self) -> Collection[str]:
        """Returns the names of the installation's users that have a Secret."""
        found = [seen.credentials for seen in self._owned.secrets.values() if seen.credentials is not None]
        # a Secret with another user name belongs to another installation, or was edited
        return {
            each.username
            for each in found
            if each.username == user_name(self._installation, each.namespace, each.agent)
        }

    async def apply_credentials(self, credentials: Credentials, owners: tuple[Owner, ...]) -> None:
        """Creates or updates the agent's Secret; entries added by others stay."""
        known = self._owned.secrets.get((credentials.namespace, secret_name(credentials.agent)))
        before = known.credentials.signing if known is not None and known.credentials is not None else ()
        # the CA certificate of another server must not stay
        removed = (AUTHORITY, *(entry_name(stream) for stream in before))
        await self._write(secret(credentials, owners, self._server, self._installation), removed)

    async def delete_credentials(self, namespace: str, agent: str) -> None:
        """Deletes the agent's Secret, if the operator created it."""
        if (namespace, secret_name(agent)) in self._owned.secrets:
            await self._api.delete(SECRETS, namespace, secret_name(agent))

    async def signing_keys(self, stream: ResourceKey) -> SigningKeys | None:
        """Returns the signing keys of a stream, if there are any."""
        seen = self._owned.secrets.get((stream.namespace, signing_secret_name(stream.name)))
        return seen.keys if seen is not None else None

    async def apply_signing_keys(self, keys: SigningKeys, owner: Owner) -> None:
        """Creates or updates the Secret with the signing keys of a stream."""
        await self._write(signing_secret(keys, owner))

    async def _write(self, body: dict[str, Any], removed: Iterable[str] = ()) -> None:
        """Creates a Secret, or updates the known one and removes entries from it.

        Raises `ClusterRefused`, and `ClusterUnavailable` if another client changed the Secret meanwhile.
        """
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        known = self._owned.secrets.get((namespace, name))
        try:
            if known is None:
                written = await self._api.create(SECRETS, namespace, body)
            else:
                body["metadata"]["resourceVersion"] = str(known.version)
                body["data"] = {**dict.fromkeys(removed), **body["data"]}
                written = await self._api.merge(SECRETS, namespace, name, body)
        except ApiError as error:
            if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                await self._read(namespace, name)
            raise_refusal(error, f"Secret {name}")
            return
        self._owned.put(written)

    async def _read(self, namespace: str, name: str) -> None:
        """Reads a Secret that is not as expected, and raises `ClusterUnavailable`: the write is repeated.

        Raises `ChildNotOurs` if the Secret was not created by the operator.
        """
        found = await self._api.get(SECRETS, namespace, name)
        if found is None:
            self._owned.secrets.pop((namespace, name), None)
        elif not is_ours(found["metadata"]):
            raise ChildNotOurs(
                f"Secret {name} exists and was not created by AgentStream: rename or delete it, or rename the"
                " agent or stream"
            )
        else:
            self._owned.put(found)
        raise ClusterUnavailable(f"Secret {namespace}/{name} was changed by another client")
