"""An agent's Secret, laid out as a Service Binding (https://servicebinding.io): all that the SDK needs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentstream_operator.cluster.labels import (
    AGENT_LABEL,
    MANAGED_BY,
    MANAGER,
    owner_references,
    secret_name,
)
from agentstream_operator.cluster.port import Credentials, Owner

AUTHORITY: Final = "ca.crt"
"""The entry with who vouches for the server."""

_TYPE = "servicebinding.io/redis"


@dataclass(frozen=True, slots=True)
class Server:
    """Where agents find the server.

    Attributes:
        uri: its address, without credentials.
        host: its host.
        port: its port.
        authority: PEM of who vouches for it, with TLS.
    """

    uri: str
    host: str
    port: int
    authority: str | None = None


def secret(
    credentials: Credentials, owners: tuple[Owner, ...], server: Server, installation: str
) -> dict[str, Any]:
    """The Secret of an agent, as it is made."""
    entries = {
        "type": "redis",
        "provider": "agentstream",
        "uri": server.uri,
        "host": server.host,
        "port": str(server.port),
        "namespace": credentials.namespace,
        "agent": credentials.agent,
        "installation": installation,
        "username": credentials.username,
        "password": credentials.password,
    }
    if server.authority is not None:
        entries[AUTHORITY] = server.authority
    return {
        "metadata": {
            "name": secret_name(credentials.agent),
            "namespace": credentials.namespace,
            "labels": {MANAGED_BY: MANAGER, AGENT_LABEL: credentials.agent},
            "ownerReferences": owner_references(owners),
        },
        "type": _TYPE,
        "data": {name: _encoded(text) for name, text in entries.items()},
    }


def credentials_in(found: Mapping[str, Any]) -> Credentials | None:
    """What a Secret of ours says; None if it lacks what an agent needs."""
    metadata = found["metadata"]
    agent = (metadata.get("labels") or {}).get(AGENT_LABEL)
    try:
        data = found["data"]
        username, password = (base64.b64decode(data[entry]).decode() for entry in ("username", "password"))
    except (KeyError, TypeError, ValueError):
        return None
    if agent is None or metadata["name"] != secret_name(agent) or not password:
        return None
    owners = frozenset(str(owner["uid"]) for owner in metadata.get("ownerReferences") or ())
    return Credentials(metadata["namespace"], agent, username, password, owners)


def encoded_address(server: Server) -> tuple[str | None, str | None]:
    """The address and the authority as a Secret holds them: in base64."""
    authority = server.authority
    return _encoded(server.uri), _encoded(authority) if authority is not None else None


def address_in(found: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The address and the authority that a Secret names, in base64 as it holds them."""
    data = found.get("data") or {}
    return data.get("uri"), data.get(AUTHORITY)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
